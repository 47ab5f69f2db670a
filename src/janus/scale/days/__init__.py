"""A day of requests, served step by step while a policy sizes the pools."""
