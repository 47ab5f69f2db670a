"""How many experts a batch activates: batches drawn, placed, balanced, counted and kept."""
