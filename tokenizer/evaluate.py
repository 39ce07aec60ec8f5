"""What a tokenizer loses: reconstructions against the very crops that they were made of.

Shapes: N pictures, B of a batch, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import distributed, images
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import Collector, Features, Loading, batches, share
from common.metrics.features import Extractor
from common.metrics.pixel import psnr
from common.precision import full_float32
from common.pretrained.lpips import LPIPS
from tokenizer.model import Tokenizer
from tokenizer.validation import Fidelity, compared

SHOWN = 4  # pictures each of the best, the median and the worst


@dataclass(frozen=True)
class Evaluation:
    """What was found over all pictures.

    Args:
        means: PSNR and SSIM, and LPIPS if its network was given.
        real, fake: features of the crops and of their reconstructions, if an extractor was given.
        order: numbers of the pictures, the highest PSNR first.
    """

    means: dict[str, float]
    real: Features | None
    fake: Features | None
    order: list[int]


def check_pictures(tokenizer: Tokenizer, dataset: Dataset, where: str) -> None:
    """Refuse pictures that the tokenizer does not take.

    Args:
        dataset: see `common.metrics.extraction.ImageSet`.
        where: they come from, for the message.
    """
    height, width = dataset[0][0].shape[1:]
    unit = tokenizer.column_width
    if height != tokenizer.height or width % unit or width < 2 * unit:
        raise UserError(
            f"{where}: found pictures of {height} x {width} pixels, expected a height of "
            f"{tokenizer.height} and a width that is a multiple of {unit}, at least {2 * unit}"
        )


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] → the same shape and type, rounded as a saved image is, on `device`."""
    with full_float32():
        real = images.to_float(pictures.to(device))
        return images.to_uint8(tokenizer.decode(tokenizer.encode(real).mode()))


@torch.inference_mode()
def evaluate(
    tokenizer: Tokenizer,
    dataset: Dataset,
    process: Process,
    loading: Loading,
    lpips: LPIPS | None = None,
    extractor: Extractor | None = None,
) -> Evaluation | None:
    """Reconstruct every picture once, over all processes, and compare 8-bit images.

    Args:
        tokenizer: on the process's device.
        dataset: of crops, see `common.metrics.extraction.ImageSet`.
        process: this process.
        loading: how pictures are read.
        lpips: measures LPIPS.
        extractor: of features for the rFID.

    Returns:
        The evaluation on the first process, None elsewhere.
    """
    fidelity = Fidelity(lpips)
    collectors = [Collector(extractor) for _ in range(2)] if extractor else []
    values = [torch.empty(0)]
    for pictures, facts in batches(dataset, process, loading, "reconstructions"):
        levels = reconstruct(tokenizer, pictures, process.device)
        real, fake = (images.to_float(x.to(process.device)) for x in (pictures, levels))
        with full_float32():
            fidelity.add(fake, real)
        values.append(psnr(fake, real).cpu())
        if extractor:
            collectors[0].add(pictures, facts)
            collectors[1].add(levels)
    mine = [k for part in share(len(dataset), loading.batch_size, process) for k in part]
    ranked = torch.stack([torch.cat(values).double(), torch.tensor(mine).double()], dim=1)
    ranked = distributed.gathered(ranked.to(process.device))
    means = fidelity.means(process.device)
    features = [collector.features() for collector in collectors] or [None, None]
    if ranked is None:
        return None
    order = ranked[:, 1].int()[ranked[:, 0].argsort(descending=True)]
    return Evaluation(means, *features, order.tolist())


def extremes(order: list[int]) -> list[int]:
    """The numbers of the best, the median and the worst pictures, none of them twice."""
    count = min(SHOWN, len(order) // 3)
    if count == 0:
        return order
    middle = (len(order) - count) // 2
    return order[:count] + order[middle : middle + count] + order[-count:]


def grid(
    tokenizer: Tokenizer, dataset: Dataset, numbers: list[int], device: torch.device
) -> Tensor:
    """Pictures, their reconstructions and the differences, see `compared`."""
    real = torch.stack([dataset[k][0] for k in numbers])
    fake = [reconstruct(tokenizer, picture[None], device).cpu() for picture in real]
    return compared(real, torch.cat(fake))
