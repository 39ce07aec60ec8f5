"""A tokenizer small enough for tests."""

import copy

import pytest
import torch
import yaml

from tokenizer import Tokenizer

SIZES = yaml.safe_load("""
ddconfig: {resolution: 16, ch: 16, ch_mult: [1, 2, 2], num_res_blocks: 1, z_channels: 8,
           len_down_scale: 1, attn_resolutions: [4], norm_groups: 8}
sematicconfig: {ch: 16, ch_mult: [2, 1], num_res_blocks: 1, out_ch: 24, norm_groups: 8}
embed_dim: 6
std: 1.5
""")


@pytest.fixture
def sizes():
    return copy.deepcopy(SIZES)


@pytest.fixture
def tokenizer(sizes):
    torch.manual_seed(0)
    return Tokenizer(**sizes).eval()


@pytest.fixture
def generator():
    """Randomness."""
    return torch.Generator().manual_seed(0)
