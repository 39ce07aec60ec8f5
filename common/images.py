"""Images: from files to tensors and back.

`H W` pixels. Tensors are uint8 in 0..255, or float32 in [-1, 1] as the models take and give them.
"""

import os
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from common.errors import UserError
from common.io import replacing

Interpolation = Literal["bicubic", "pil_bilinear", "cv2_bilinear"]
MAX_PIXELS = 2**27  # of a resized image


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Floats of any shape to uint8: [-1, 1] to 0..255, rounded, clamped; uint8 stays as it is."""
    if images.dtype == torch.uint8:
        return images
    return images.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image of any common kind as upright RGB; transparency becomes white."""
    try:
        if not os.path.isfile(path):
            raise ValueError("no such file, or a pipe")
        with Image.open(path) as opened:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range nothing says")
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
                values = np.asarray(image) / 257
                image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    except Exception as error:  # damaged files fail in many ways, depending on the decoder
        raise UserError(f"{path}: not a readable image ({error})") from error


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def resize_to_cover(
    image: Image.Image, height: int, width: int, interpolation: Interpolation = "bicubic"
) -> torch.Tensor:
    """An RGB image scaled until `height` x `width` just fits inside: uint8 [3, H, W].

    `bicubic` and `pil_bilinear`, the released stage two's, have a filter that widens as the image
    shrinks; their values are Pillow's to within its rounding, in a fraction of its time.
    `cv2_bilinear`, the released stage one's, has none, and OpenCV's values.
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    scale = max(height / image.height, width / image.width)
    whole = int if interpolation == "pil_bilinear" else round  # as torchvision's Resize
    size = (max(height, whole(image.height * scale)), max(width, whole(image.width * scale)))
    if size == pixels.shape[1:]:
        return pixels
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{image.height} x {image.width} pixels: too narrow to be resized")
    mode, filtered = interpolation.rpartition("_")[2], interpolation != "cv2_bilinear"
    return interpolate(pixels[None], size, mode=mode, antialias=filtered)[0]


def crop(
    image: torch.Tensor, height: int, width: int, randomness: np.random.Generator | None
) -> torch.Tensor:
    """Cut [3, height, width] from a random place, or from the centre without `randomness`."""
    spare = image.shape[2] - width, image.shape[1] - height
    left, top = (n // 2 if randomness is None else int(randomness.integers(n + 1)) for n in spare)
    return image[:, top : top + height, left : left + width]


def adm_crop(image: Image.Image, size: int) -> torch.Tensor:
    """The centre square that ADM (Dhariwal and Nichol 2021) trained on and took statistics of.

    Halved by averages while the short side stays at least `size`, then scaled to it bicubically,
    both by Pillow; uint8 [3, size, size].
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    return crop(to_tensor(image), size, size, None)


def save_image(path: str | os.PathLike[str], image: torch.Tensor) -> None:
    """Write `image` [3, H, W], uint8 or float in [-1, 1], as PNG."""
    with replacing(path, durable=False) as file:
        _to_pil(image).save(file, format="PNG")


def save_grid(path: str | os.PathLike[str], images: torch.Tensor, columns: int) -> None:
    """Write `images` [N, 3, H, W], uint8 or float in [-1, 1], as one PNG, `columns` in a row."""
    from torchvision.utils import make_grid  # takes seconds, which few programs need to spend

    save_image(path, make_grid(to_uint8(images), min(columns, len(images)), pad_value=255))


def save_gif(path: str | os.PathLike[str], frames: Iterable[torch.Tensor], ms: int) -> None:
    """Write frames [3, H, W] as an endless animation with `ms` milliseconds a frame."""
    first, *others = [_to_pil(frame) for frame in frames]
    with replacing(path, durable=False) as file:
        first.save(file, format="GIF", save_all=True, append_images=others, duration=ms, loop=0)


def _to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())
