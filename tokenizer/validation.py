"""How faithful reconstructions are: sums over a validation set on all processes.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common import distributed, images
from common.metrics.pixel import psnr, ssim
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from tokenizer.model import Tokenizer

DIFFERENCE_GAIN = 3  # of the differences that are shown


def compared(real: Tensor, fake: Tensor) -> Tensor:
    """uint8 images and their reconstructions, [B, 3, H, W] twice, with their absolute differences,
    three times as bright: the three rows of a grid, [3·B, 3, H, W]."""
    difference = (real.int() - fake.int()).abs().mul(DIFFERENCE_GAIN).clamp(max=255)
    return torch.cat([real, fake, difference.to(torch.uint8)])


class Fidelity:
    """Means of PSNR, SSIM and, with its network, LPIPS over images.

    Args:
        lpips: measures LPIPS; without it there is none.
    """

    def __init__(self, lpips: LPIPS | None = None) -> None:
        self.measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips} if lpips else {})
        self.sums = torch.zeros(1 + len(self.measures), dtype=torch.float64)

    def add(self, fake: Tensor, real: Tensor) -> None:
        """Add a batch of reconstructions and their images, both [B, 3, H, W] in [-1, 1]."""
        with torch.autocast(real.device.type, enabled=False):
            values = [torch.ones(len(real))]
            values += [measure(fake.float(), real) for measure in self.measures.values()]
        self.sums += torch.stack([v.double().sum().cpu() for v in values])

    def means(self, device: torch.device) -> dict[str, float]:
        """Over the images of all processes, some of which may have had more than others."""
        count, *sums = distributed.total(self.sums.to(device)).tolist()
        return {name: s / count for name, s in zip(self.measures, sums, strict=True)}


def available_lpips(weights_dir: str | None) -> LPIPS | None:
    """LPIPS where its network is at hand."""
    return LPIPS(weights_dir) if pretrained.present("vgg16", weights_dir) else None


@torch.no_grad()
def measure_fidelity(
    tokenizer: Tokenizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    lpips: LPIPS | None = None,
) -> dict[str, float]:
    """Means of `Fidelity` over batches of uint8 images [B, 3, H, W], each process its share."""
    fidelity = Fidelity(lpips)
    for pictures, _ in batches:
        real = images.to_float(pictures.to(device))
        fidelity.add(tokenizer.decode(tokenizer.encode(real).mode()), real)
    return fidelity.means(device)
