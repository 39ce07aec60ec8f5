"""Evaluation of reconstructions: PSNR, SSIM, LPIPS and features against their crops."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common import distributed, images
from common.distributed import Process
from common.errors import UserError
from common.logger import progress_bar
from common.metrics.extraction import Collector, Features
from common.metrics.features import Extractor
from common.metrics.pixel import psnr, ssim
from common.precision import full_float32
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from common.signals import ignore_signals
from tokenizer.model import Tokenizer
from tokenizer.scale import Moments

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
    attend: Callable[[], None] | None = None,
) -> Evaluation:
    """Reconstruct every image once, over all processes, and compare 8-bit images.

    Args:
        tokenizer: in evaluation mode, on the process's device.
        dataset: whose items begin with an image, uint8 [3, H, W].
        process, batch_size, num_workers: each process reads its share in such batches.
        lpips, extractor: networks for LPIPS and for the features of the rFID.
        attend: called between batches, by all processes together.
    """
    if len(dataset) < process.world:
        raise UserError(f"found {len(dataset)} images for {process.world} processes")
    numbers = range(process.rank, len(dataset), process.world)
    loader = DataLoader(
        Subset(dataset, numbers), batch_size, num_workers=num_workers, worker_init_fn=ignore_signals
    )
    measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips} if lpips else {})
    collectors = [Collector(extractor) for _ in range(2)] if extractor else []
    moments, rows = Moments(), []
    with progress_bar(len(numbers), "reconstructions", "image", process.is_main) as bar:
        for index, (batch, *_) in enumerate(loader):
            levels = reconstruct(tokenizer, batch, moments)
            real, fake = (images.to_float(x.to(levels.device)) for x in (batch, levels))
            with full_float32():
                found = [measure(fake, real).double() for measure in measures.values()]
            rows.append(torch.stack(found, dim=1))
            these = numbers[index * batch_size :][: len(batch)]
            for collector, pixels in zip(collectors, (batch, levels), strict=False):
                collector.add(pixels, these)
            bar.update(len(batch))
            # some processes have one more batch, before which they do not meet
            if attend and index * batch_size < len(dataset) // process.world:
                attend()
    values = torch.cat(rows)  # [N, measures]
    means = distributed.all_reduce_sum(values.sum(0)) / len(dataset)
    number = torch.tensor(numbers, dtype=torch.float64, device=values.device)
    ranked = distributed.gather(torch.stack([values[:, 0], number], dim=1))
    order = [] if ranked is None else ranked[ranked[:, 0].argsort(descending=True), 1].int()
    return Evaluation(
        dict(zip(measures, means.tolist(), strict=True)),
        moments.scale(process.device),
        list(map(int, order)),
        *(collector.features() for collector in collectors),
    )


def extremes(order: list[int]) -> list[int]:
    """The numbers of the best, the median and the worst images, none of them twice."""
    count = max(1, min(SHOWN, len(order) // 3))
    middle = (len(order) - count) // 2
    shown = order[:count] + order[middle : middle + count] + order[-count:]
    return list(dict.fromkeys(shown))


def comparison(tokenizer: Tokenizer, dataset: Dataset, numbers: list[int]) -> Tensor:
    """Images of a data set, their reconstructions and their absolute differences, three times as
    bright: the rows of a grid, uint8 [3·N, 3, H, W]."""
    real = torch.stack([dataset[k][0] for k in numbers])
    fake = torch.cat([reconstruct(tokenizer, image[None]).cpu() for image in real])
    difference = (real.int() - fake.int()).abs().mul(DIFFERENCE_GAIN).clamp(max=255)
    return torch.cat([real, fake, difference.to(torch.uint8)])
