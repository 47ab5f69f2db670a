"""The online loop: observations in, decisions out."""
