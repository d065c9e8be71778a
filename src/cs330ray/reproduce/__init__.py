"""One trial again, compared with its record."""
