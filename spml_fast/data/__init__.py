"""Data sets that come ready as single-positive problems."""
