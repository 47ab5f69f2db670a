"""Routed experts as a model holds them: where they sit, what they compute, how they are read from disk."""
