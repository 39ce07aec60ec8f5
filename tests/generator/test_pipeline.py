from __future__ import annotations

import pytest
import torch

from common import images
from common.errors import UserError
from generator.pipeline import generate, image_noise
from generator.sampling import Guidance


class Decoder:
    """Each token is a column of one pixel, its first three channels the colours."""

    def decode_tokens(self, tokens):
        return tokens[:, :, :3].transpose(1, 2)[:, :, None]


def draw(model, numbers, labels=None, columns=6, seed=0, **more):
    labels = [k % 5 for k in numbers] if labels is None else labels
    guidance = Guidance(2.0, "linear", 6)
    return generate(model, Decoder(), labels, numbers, columns, guidance, 4, seed=seed, **more)


def test_an_image_is_the_same_in_every_batch(model):
    together = draw(model, [0, 1, 2, 3, 9])
    assert together.shape == (5, 3, 1, 6)
    for row, number in enumerate([0, 1, 2, 3, 9]):
        torch.testing.assert_close(draw(model, [number])[0], together[row], atol=1e-5, rtol=1e-4)
    for order in ([9, 3], [3, 9]):
        pair = images.to_uint8(draw(model, order)).int()
        expected = images.to_uint8(together[[[0, 1, 2, 3, 9].index(k) for k in order]]).int()
        assert (pair - expected).abs().max() <= 1


def test_seeds_and_numbers_make_different_images(model):
    distinct = [draw(model, [k], labels=[0], seed=seed) for k in (0, 1) for seed in (0, 1)]
    for i, a in enumerate(distinct):
        assert all((a - b).abs().max() > 0.01 for b in distinct[:i])


def test_a_longer_image_begins_with_the_noise_of_a_shorter_one():
    short, long = image_noise(3, [7, 8], 4, 6), image_noise(3, [7, 8], 40, 6)
    assert torch.equal(long[:, :4], short)
    assert short.shape == (2, 4, 6) and not torch.equal(short[0], short[1])


def test_a_prefix_is_kept(model):
    prefix = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    drawn = draw(model, [0, 1], prefix=prefix)
    torch.testing.assert_close(drawn[:, :, 0, :3], prefix[:, :, :3].transpose(1, 2))


def test_without_temperature_only_the_class_counts(model):
    pair = draw(model, [0, 1], labels=[2, 2], temperature=0.0)
    torch.testing.assert_close(pair[0], pair[1])


@pytest.mark.parametrize("label", [-1, 5])
def test_a_class_outside_the_range_is_named(model, label):
    with pytest.raises(UserError, match=r"class labels: found .*, expected 0 … 4"):
        draw(model, [0, 1], labels=[0, label])
