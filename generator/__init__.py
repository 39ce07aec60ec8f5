"""Stage two: column tokens, one after the other."""
