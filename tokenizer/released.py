"""Names of before `tokenizer.checkpoints`, until their callers are renamed."""

from tokenizer.checkpoints import ema_name, from_released, released_name, to_released  # noqa: F401
