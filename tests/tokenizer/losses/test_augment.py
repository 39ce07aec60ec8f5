from __future__ import annotations

import pytest
import torch

from tokenizer.losses.augment import (
    DRAWS,
    augment,
    cut_out,
    scale_contrast,
    scale_saturation,
    shift_brightness,
    translate,
)

HALF = torch.tensor([0.5, 0.5])
LAST = torch.tensor([1 - 2**-24] * 2)


@pytest.fixture
def images(generator):
    return torch.rand(2, 3, 16, 24, generator=generator) * 2 - 1


def test_draws_of_one_half_change_nothing_but_the_hole(images):
    found = augment(images, torch.full((2, DRAWS), 0.5))
    hole = torch.zeros(16, 24, dtype=torch.bool)
    hole[7:10, 10:15] = True  # 3 of 16 and 5 of 24, in the middle
    assert not found[:, :, hole].any()
    torch.testing.assert_close(found[:, :, ~hole], images[:, :, ~hole])


@pytest.mark.parametrize(("draw", "added"), [(0.0, -0.5), (0.25, -0.25), (1.0, 0.5)])
def test_brightness_is_added(images, draw, added):
    found = shift_brightness(images, torch.tensor([draw, 0.5]))
    assert torch.equal(found[0], images[0] + added)
    assert torch.equal(found[1], images[1])


def test_without_saturation_there_is_grey_and_twice_of_it_is_colourful(images):
    grey = images.mean(1, keepdim=True)
    none, double = scale_saturation(images, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(none, grey[0].expand(3, -1, -1))
    torch.testing.assert_close(double - grey[1], 2 * (images[1] - grey[1]))


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
def test_contrast_scales_the_deviation_and_keeps_the_mean(images, draw, factor):
    found = scale_contrast(images, torch.full((2,), draw))
    torch.testing.assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(found.std((1, 2, 3)), factor * images.std((1, 2, 3)))


@pytest.mark.parametrize(
    ("down", "right", "pixels"),
    [
        (0.0, 0.5, (-2, 0)),
        (0.39, 0.5, (-1, 0)),
        (0.41, 0.42, (0, -1)),  # 5 shifts down, 7 to the right
        (0.5, 0.0, (0, -3)),
        (1 - 2**-24, 1 - 2**-24, (2, 3)),
    ],
)
def test_translation_moves_by_whole_pixels_and_fills_with_zeros(images, down, right, pixels):
    expected = torch.zeros_like(images)
    for y in range(16):
        for x in range(24):
            source = (y - pixels[0], x - pixels[1])
            if 0 <= source[0] < 16 and 0 <= source[1] < 24:
                expected[0, :, y, x] = images[0, :, source[0], source[1]]
    found = translate(images, torch.tensor([down, 0.5]), torch.tensor([right, 0.5]))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], images[1])


@pytest.mark.parametrize(
    ("down", "right", "rows", "columns"),
    [
        (HALF, HALF, (7, 10), (10, 15)),
        (0 * HALF, 0 * HALF, (0, 2), (0, 3)),  # centred on the first pixel
        (LAST, LAST, (14, 16), (21, 24)),
    ],
)
def test_place_and_size_of_the_hole(images, down, right, rows, columns):
    found = cut_out(images, down, right)
    hole = torch.zeros(16, 24, dtype=torch.bool)
    hole[slice(*rows), slice(*columns)] = True
    assert torch.equal(found, images * ~hole)


def test_each_image_has_draws_of_its_own(images, generator):
    uniform = torch.rand(2, DRAWS, generator=generator)
    both = augment(images, uniform)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], augment(images[i : i + 1], uniform[i : i + 1]))
    assert not torch.allclose(both[0], augment(images, uniform.flip(0))[0])


def test_the_gradient_is_that_of_a_linear_map(images, generator):
    """All steps are affine: the change of the outcome is the gradient times that of the image."""
    uniform = torch.rand(2, DRAWS, generator=generator).double()
    weights = torch.randn(images.shape, generator=generator).double()
    images = images.double().requires_grad_()
    outcome = (augment(images, uniform) * weights).sum()
    (gradient,) = torch.autograd.grad(outcome, images)
    change = torch.randn(images.shape, generator=generator).double()
    moved = (augment(images + change, uniform) * weights).sum()
    torch.testing.assert_close(moved - outcome, (gradient * change).sum())
    assert gradient.abs().max() > 0.1
