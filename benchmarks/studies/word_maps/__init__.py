"""How well the maps of words point."""
