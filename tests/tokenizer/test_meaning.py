from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from tokenizer.meaning import token_meaning
from tokenizer.model import Tokenizer


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    config = {
        "resolution": 16,
        "ch": 8,
        "ch_mult": [1, 1],
        "num_res_blocks": 0,
        "z_channels": 4,
        "len_down_scale": 1,
        "attn_resolutions": [],
        "norm_groups": 2,
    }
    model = Tokenizer(config, embed_dim=6).eval()
    model.token_scale.fill_(0.25)
    return model


def test_frames_lead_from_random_tokens_to_the_reconstruction(tokenizer):
    image, noise = torch.rand(3, 16, 24) * 2 - 1, torch.randn(12, 6)
    frames = token_meaning(tokenizer, image, noise)
    assert frames.shape == (13, 3, 16, 24)
    with torch.no_grad():
        tokens = tokenizer.encode(image[None]).mode()
        torch.testing.assert_close(frames[:1], tokenizer.decode_tokens(noise[None]))
        torch.testing.assert_close(frames[-1:], tokenizer.decode(tokens))
        tokens[:, 5:] = noise[5:] / 0.25
        torch.testing.assert_close(frames[5:6], tokenizer.decode(tokens))


def test_noise_of_another_length_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"found shape \[5, 6\], expected \[8, 6\]"):
        token_meaning(tokenizer, torch.zeros(3, 16, 16), torch.zeros(5, 6))
