from __future__ import annotations

import torch

from tokenizer.columns import columnise, rasterise


def test_rasterise_is_the_inverse():
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(rasterise(columnise(features), 4), features)


def test_channels_are_slowest_and_rows_fastest_in_a_column():
    b, z, h, w = 2, 3, 4, 5
    features = torch.arange(b * z * h * w).view(b, z, h, w)
    columns = columnise(features)
    assert columns.shape == (b, w, z * h)
    for channel in range(z):
        for row in range(h):
            expected = features[:, channel, row]
            assert torch.equal(columns[:, :, channel * h + row], expected)
