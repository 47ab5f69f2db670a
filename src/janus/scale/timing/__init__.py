"""How long a step takes: parts, the exchange, files, and what whole steps teach."""
