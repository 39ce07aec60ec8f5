"""The built-in data: painted panoramas of nine landscapes."""
