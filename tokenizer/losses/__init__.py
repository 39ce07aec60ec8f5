"""The terms of the tokenizer's objective."""
