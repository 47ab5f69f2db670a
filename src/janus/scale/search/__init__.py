"""Pools that serve a demand: every pair, a mixed-integer program, and the colocated optimum beside them."""
