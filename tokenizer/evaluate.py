"""Evaluation of reconstructions: PSNR, SSIM, LPIPS and features against their crops."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import distributed, images
from common.distributed import Process
from common.metrics.extraction import Collector, Features
from common.metrics.features import Extractor
from common.metrics.pixel import psnr, ssim
from common.precision import full_float32
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from tokenizer.model import Tokenizer
from tokenizer.scale import Moments, image_batches

SHOWN = 4  # images each of the best, the median and the worst
DIFFERENCE_GAIN = 3  # of the differences that are shown


@dataclass(frozen=True)
class Evaluation:
    """What was found over all images; order and features on the first process alone."""

    means: dict[str, float]  # PSNR and SSIM, and LPIPS if its network was given
    token_scale: float | None  # 1/std of sampled tokens; None where they have collapsed
    order: list[int]  # numbers of the images, the highest PSNR first
    real: Features | None = None  # of the crops
    fake: Features | None = None  # of their reconstructions


def available_lpips(weights_dir: str | os.PathLike[str] | None) -> LPIPS | None:
    """LPIPS where its network is at hand."""
    return LPIPS(weights_dir) if pretrained.present("vgg16", weights_dir) else None


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, batch: Tensor, moments: Moments | None = None) -> Tensor:
    """uint8 [B, 3, H, W] → uint8 [B, 3, H, W], rounded as a saved image is, on the tokenizer's
    device; the posterior is added to `moments`."""
    with full_float32():
        real = images.to_float(batch.to(tokenizer.token_scale.device))
        posterior = tokenizer.encode(real)
        if moments is not None:
            moments.add(posterior)
        return images.to_uint8(tokenizer.decode(posterior.mode()))


@torch.inference_mode()
def evaluate(
    tokenizer: Tokenizer,
    dataset: Dataset,
    process: Process,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    lpips: LPIPS | None = None,
    extractor: Extractor | None = None,
    attend: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Reconstruct every image once, over all processes, and compare 8-bit images.

    Args:
        tokenizer: in evaluation mode, on the process's device.
        dataset: whose items begin with an image, uint8 [3, H, W].
        batch_size, num_workers: of the loader.
        lpips, extractor: networks for LPIPS and for the features of the rFID.
        attend: called between batches, by all processes together.
    """
    measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips} if lpips else {})
    collectors = [Collector(extractor) for _ in range(2)] if extractor else []
    moments, device = Moments(), process.device
    rows = [torch.empty(0, 1 + len(measures), dtype=torch.float64, device=device)]
    rounds = -(-len(dataset) // batch_size) // process.world  # some have one more batch
    loaded = image_batches(
        dataset, range(len(dataset)), process, "reconstructions", batch_size, num_workers
    )
    for index, (numbers, batch) in enumerate(loaded):
        levels = reconstruct(tokenizer, batch, moments)
        real, fake = (images.to_float(x.to(device)) for x in (batch, levels))
        with full_float32():
            found = [measure(fake, real).double() for measure in measures.values()]
        rows.append(torch.stack([torch.tensor(numbers, device=device), *found], dim=1))
        for collector, pixels in zip(collectors, (batch, levels), strict=False):
            collector.add(pixels, numbers)
        if index < rounds:
            attend()
    values = torch.cat(rows)  # [N, 1 + measures], an image's number first
    means = distributed.all_reduce_sum(values[:, 1:].sum(0)) / len(dataset)
    ranked = distributed.gather(values)
    order = [] if ranked is None else ranked[ranked[:, 1].argsort(descending=True), 0].tolist()
    return Evaluation(
        dict(zip(measures, means.tolist(), strict=True)),
        moments.scale(device),
        list(map(int, order)),
        *(collector.features() for collector in collectors),
    )


def extremes(order: list[int]) -> list[int]:
    """The numbers of the best, the median and the worst images, none of them twice."""
    count = max(1, min(SHOWN, len(order) // 3))
    middle = (len(order) - count) // 2
    return list(dict.fromkeys(order[:count] + order[middle : middle + count] + order[-count:]))


def comparison(tokenizer: Tokenizer, dataset: Dataset, numbers: list[int]) -> Tensor:
    """Images of a data set, their reconstructions and their absolute differences, three times as
    bright: the rows of a grid, uint8 [3·N, 3, H, W]."""
    real = torch.stack([dataset[k][0] for k in numbers])
    fake = torch.cat([reconstruct(tokenizer, image[None]).cpu() for image in real])
    difference = (real.int() - fake.int()).abs().mul(DIFFERENCE_GAIN).clamp(max=255)
    return torch.cat([real, fake, difference.to(torch.uint8)])
