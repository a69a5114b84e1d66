"""How fast images are scored: the programs score, growth and startup, and what they share."""
