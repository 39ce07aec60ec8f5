import pytest
import torch

from tokenizer.losses.augment import cut_out, jitter, translate

HALF = torch.tensor([0.5, 0.5])
LAST = torch.tensor([1 - 2**-24] * 2)


@pytest.fixture
def images(generator):
    return torch.rand(2, 3, 16, 24, generator=generator) * 2 - 1


def test_colours_by_hand(images):
    """Of each image alone: brightness is added, saturation and contrast are factors."""
    same, first = torch.tensor([0.5, 0.5]), images[0]
    bright = jitter(images, torch.tensor([0.25, 0.5]), same, same)
    torch.testing.assert_close(bright[0], first - 0.25)
    torch.testing.assert_close(bright[1], images[1])
    grey = images.mean(1, keepdim=True)
    none, double = jitter(images, same, torch.tensor([0.0, 1.0]), same)
    torch.testing.assert_close(none, grey[0].expand(3, -1, -1))
    torch.testing.assert_close(double - grey[1], 2 * (images[1] - grey[1]))
    contrast = jitter(images, same, same, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(contrast[0] - first.mean(), 1.5 * (first - first.mean()))


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
