"""Heads that turn a hidden vector into a token."""
