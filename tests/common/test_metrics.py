from __future__ import annotations

import pytest
import torch

from common.metrics import psnr


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_a_constant_error(error, decibels):
    reference = torch.full((2, 3, 4, 5), -1.0)
    assert psnr(reference + error, reference).tolist() == pytest.approx([decibels] * 2, abs=1e-3)


def test_each_image_has_its_own():
    reference = torch.zeros(2, 3, 4, 4)
    images = reference.clone()
    images[1] += 0.2
    first, second = psnr(images, reference).tolist()
    assert first > 99 and second == pytest.approx(20, abs=1e-3)


def test_what_lies_outside_the_range_is_clamped_as_in_a_saved_image():
    white = torch.ones(1, 3, 4, 4)
    assert psnr(white + 5, white).item() == psnr(white, white).item()
