"""Stage one: images to column tokens and back."""

from tokenizer.checkpoints import load_tokenizer
from tokenizer.model import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
