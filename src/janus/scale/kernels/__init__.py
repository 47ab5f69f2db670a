"""Measured kernels: tables, the physical forms fitted to them, and measuring on the machine at hand."""
