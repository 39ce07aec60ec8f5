import os

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.errors import UserError


def test_every_byte_survives_the_way_to_floats_and_back():
    x = torch.arange(256, dtype=torch.uint8)
    floats = images.to_float(x)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[255]) == (-1, 1)
    assert torch.equal(images.to_uint8(floats), x)
    assert torch.equal(x, torch.arange(256, dtype=torch.uint8))  # the argument is untouched


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("mode", "value", "name", "expected"),
    [
        ("L", 77, "x.png", (77, 77, 77)),
        ("I;16", 257 * 200, "x.png", (200, 200, 200)),
        ("I;16", 65535, "x.tif", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), "x.png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "x.webp", (204, 204, 204)),
        ("LA", (100, 0), "x.png", (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), "x.tif", (0, 255, 255)),
        ("RGB", (200, 40, 90), "x.jpg", (200, 40, 90)),
        ("CMYK", (255, 0, 255, 0), "x.jpg", (0, 255, 0)),  # Adobe's, stored inverted
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, value, name, expected):
    path = tmp_path / name
    Image.new(mode, (16, 9), value).save(path, **({"lossless": True} if name == "x.webp" else {}))
    image = images.read_rgb(path)
    assert (image.mode, image.size) == ("RGB", (16, 9))
    assert image.getpixel((0, 0)) == pytest.approx(expected, abs=4 if name == "x.jpg" else 1)


@pytest.mark.parametrize("kept", [0, -30])
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_truncated_and_empty_images_are_named(tmp_path, name, kept):
    path = tmp_path / name
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=str(path)):
        images.read_rgb(path)


@pytest.mark.parametrize("size", [(375, 500), (100, 90), (31, 47)])
def test_resized_pixels_are_those_of_pillow_to_within_rounding(size):
    image = noise(*size)
    found = images.resize_to_cover(image, 64, 64)
    resized = image.resize((found.shape[2], found.shape[1]), Image.Resampling.BICUBIC)
    difference = (found.int() - images.to_tensor(resized).int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.05


def test_each_interpolation_is_that_of_its_library():
    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, :, None] * 30, (8, 1, 3))
    plain = images.resize_to_cover(Image.fromarray(ramp), 4, 4, "cv2_bilinear")
    assert plain[0, 0].tolist() == [15, 75, 135, 195]  # the mean of two neighbours, no filter
    image = noise(60, 90)
    found = images.resize_to_cover(image, 20, 20, "pil_bilinear")
    expected = images.to_tensor(image.resize((30, 20), Image.Resampling.BILINEAR))
    assert (found.int() - expected.int()).abs().max() <= 1


def test_images_that_would_exhaust_the_memory_are_refused():
    with pytest.raises(UserError, match="narrow"):
        images.resize_to_cover(Image.new("L", (500_000, 1)).convert("RGB"), 64, 64)


def test_pipes_and_missing_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("x.png", "pipe.png"):
        with pytest.raises(UserError, match=name):
            images.read_rgb(tmp_path / name)


def test_turned_photographs_are_upright(tmp_path):
    exif, image = Image.Exif(), noise(4, 8)
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "x.png", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert images.read_rgb(tmp_path / "x.png").tobytes() == turned.tobytes()


def test_a_saved_png_reads_back_exactly(tmp_path):
    x = torch.arange(105, dtype=torch.uint8).reshape(3, 5, 7)
    for k, saved in enumerate((x, images.to_float(x))):
        images.save_image(tmp_path / "new" / f"{k}.png", saved)
        assert torch.equal(images.to_tensor(images.read_rgb(tmp_path / "new" / f"{k}.png")), x)
