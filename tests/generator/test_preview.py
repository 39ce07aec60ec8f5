from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from generator.preview import Preview


class Decoder:
    """A column of four pixels a token, 8 pixels high."""

    column_width = 4

    def decode_tokens(self, tokens):
        grey = tokens.mean(2).tanh()  # [B, L]
        return grey[:, None, None].repeat_interleave(4, 3).expand(-1, 3, 8, -1)


def test_pictures_of_all_classes_the_same_each_time(model, tmp_path):
    preview = Preview(Decoder(), columns=7, count=9, steps=2, cfg=2.0)
    before = torch.get_rng_state()
    for name in ("a.png", "b.png"):
        preview(model, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    a, b = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert a.shape == (3 * (8 + 2) + 2, 3 * (28 + 2) + 2, 3)
    assert (a == b).all()
    assert len({a[3 + 10 * i, 3 + 30 * j, 0] for i in range(3) for j in range(3)}) > 3
