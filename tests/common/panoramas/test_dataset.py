"""The built-in data set: the same everywhere, seamless, without marks at its borders."""

import hashlib

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.panoramas.dataset import CLASS_NAMES, Panoramas, render

# Of the renders of the next test; another value means that every user's data have changed.
DIGEST = "1a447c41df3ce882"


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for name in CLASS_NAMES:
        digest.update(render(name, 0, 1, 1000, 64, 96).tobytes())
        digest.update(render(name, 7, 2, 999_999, 48, 33).tobytes())
    assert digest.hexdigest()[:16] == DIGEST


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("start", [0, 1_000_003])
def test_overlapping_windows_agree_in_every_bit(name, start):
    whole = render(name, 0, 3, start, 64, 200)
    for left, width in [(0, 64), (64, 64), (77, 1), (101, 99)]:
        window = render(name, 0, 3, start + left, 64, width)
        assert np.array_equal(window, whole[:, left : left + width])


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_larger_image_shows_the_same_scene(name):
    small = render(name, 0, 5, 640, 64, 64).astype(float)
    large = render(name, 0, 5, 2560, 256, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    other = render(name, 0, 5, 12_800, 64, 64).astype(float)
    assert np.abs(small - large).mean() < 0.4 * np.abs(small - other).mean()


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_no_column_of_a_crop_is_special(name):
    """Over many crops, brightness and local contrast have one mean at all positions."""
    crops = [render(name, 0, strip, 0, 32, 32) for strip in range(60)]
    grey = np.stack(crops).astype(float).mean(3)  # [N, H, W]
    contrast = np.abs(np.diff(grey, axis=2)).mean(1)
    for value in (grey.mean(1), contrast):
        away = value - value.mean(1, keepdims=True)
        z = away.mean(0) / (away.std(0) / np.sqrt(len(away)))
        assert np.abs(z).max() < 5


def test_images_do_not_depend_on_workers_or_epoch():
    data = Panoramas(length=20, size=32, seed=4)
    worked = [torch.cat([x for x, _ in DataLoader(data, 6, num_workers=2)]) for _ in range(2)]
    alone = torch.stack([image for image, _ in Panoramas(20, 32, seed=4)])
    assert torch.equal(worked[0], alone) and torch.equal(worked[1], alone)
