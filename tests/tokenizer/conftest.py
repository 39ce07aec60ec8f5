"""A tokenizer small enough for tests."""

import pytest
import torch

from tokenizer import Tokenizer

SIZES = {
    "ddconfig": {
        "resolution": 16,
        "ch": 16,
        "ch_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "z_channels": 8,
        "len_down_scale": 1,
        "attn_resolutions": (4,),
        "norm_groups": 8,
    },
    "sematicconfig": {
        "ch": 16,
        "ch_mult": (2, 1),
        "num_res_blocks": 1,
        "out_ch": 24,
        "norm_groups": 8,
    },
    "embed_dim": 6,
    "std": 1.5,
}


@pytest.fixture
def sizes():
    return {k: dict(v) if isinstance(v, dict) else v for k, v in SIZES.items()}


@pytest.fixture
def tokenizer(sizes):
    torch.manual_seed(0)
    return Tokenizer(**sizes).eval()


@pytest.fixture
def generator():
    """Randomness."""
    return torch.Generator().manual_seed(0)
