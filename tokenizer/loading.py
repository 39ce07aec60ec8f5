"""Names of before `tokenizer.checkpoints`, until their callers are renamed."""

from tokenizer.checkpoints import from_released, load_tokenizer, to_released  # noqa: F401
from tokenizer.model import Tokenizer

SIZES = ("ddconfig", "embed_dim", "std", "sematicconfig", "post_channels")


def tokenizer_from_config(path, token_scale=None, overrides=()):
    return load_tokenizer(path, overrides=overrides, token_scale=token_scale)


def identity(tokenizer):
    return tokenizer.fingerprint


def untrained(path):
    from omegaconf import OmegaConf

    from common import config

    params = OmegaConf.to_container(config.load(path).model.params)
    sizes = {k: params[k] for k in SIZES if k in params and k != "sematicconfig"}
    return Tokenizer(**sizes).eval().requires_grad_(False)
