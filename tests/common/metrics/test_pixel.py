import pytest
import torch

from common.metrics.pixel import psnr, ssim


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_a_constant_error(error, decibels):
    reference = torch.full((2, 3, 4, 5), -1.0)
    images = reference + torch.tensor([error, 0.2])[:, None, None, None]  # each has its own
    assert psnr(images, reference).tolist() == pytest.approx([decibels, 20], abs=1e-3)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_what_lies_outside_the_range_is_clamped_as_in_a_saved_image(measure):
    white = torch.ones(1, 3, 16, 16)
    assert measure(white + 5, white).item() == measure(white, white).item()


def test_similarity_of_structure():
    torch.manual_seed(0)
    image = torch.rand(3, 3, 24, 32) * 1.6 - 0.8
    assert ssim(image, image).tolist() == pytest.approx([1, 1, 1])
    weaker = ssim(0.5 * image, image)
    # each image has its own
    mixed = torch.cat([image[:1], 0.5 * image[1:2]])
    assert ssim(mixed, image[:2]).tolist() == pytest.approx([1, weaker[1].item()], abs=1e-5)
