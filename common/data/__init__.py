"""Data sets, their order, and cached tokens."""
