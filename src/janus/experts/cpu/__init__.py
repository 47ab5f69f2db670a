"""Vector code of the experts for CPUs: sort entries by slot, two products per slot, threads."""
