"""Evaluation over a data set: fidelity of reconstructions, and the scale of tokens."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from common import checkpoint, distributed, images
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import Collector, Features, image_batches
from common.metrics.features import Extractor
from common.metrics.pixel import psnr, ssim
from common.precision import full_float32
from common.pretrained import files as pretrained
from common.pretrained.lpips import LPIPS
from tokenizer.checkpoints import build, load_on_all, read
from tokenizer.model import Tokenizer
from tokenizer.posterior import Posterior

SHOWN = 8  # images in a grid
DIFFERENCE_GAIN = 3  # of the differences that are shown
SCALE_IMAGES = 50_000  # more make the scale no better


class Moments:
    """Mean and variance of the sampled tokens of all processes, in expectation over the noise."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)  # values, their sum, sum of their squares

    def add(self, posterior: Posterior) -> None:
        mean = posterior.mean.double()
        squares = mean.square().sum().item() + mean.numel() * posterior.noise_variance
        self.sums += torch.tensor([mean.numel(), mean.sum().item(), squares], dtype=torch.float64)

    def scale(self, device: torch.device) -> float | None:
        """1/std over all processes; None where the tokens have collapsed or diverged."""
        count, first, second = distributed.all_reduce_sum(self.sums.to(device)).tolist()
        variance = second / count - (first / count) ** 2 if count else 0.0
        return variance**-0.5 if 0 < variance < float("inf") else None


@torch.no_grad()
def rescale(path: Path, dataset: Dataset, process: Process, **loading: int) -> Tokenizer:
    """The tokenizer of our checkpoint with its tokens' scale, 1/std of posterior samples over at
    most `SCALE_IMAGES` images, evenly spread over a data set, which is stored there. The first
    process reads the file, once, for all. `loading`: as of `image_batches`."""
    content = read(path) if process.is_main else {}
    tokenizer = load_on_all(process, lambda: build(content, path))
    chosen, moments = Subset(dataset, evenly_spread(dataset, SCALE_IMAGES)), Moments()
    for _, batch in image_batches(chosen, process, "token scale", **loading):
        with full_float32():
            moments.add(tokenizer.encode(images.to_float(batch.to(process.device))))
    scale = moments.scale(process.device)
    if scale is None:
        raise UserError("the tokens of this tokenizer have no finite spread; was it trained?")
    tokenizer.token_scale.fill_(scale)
    if process.is_main:
        for name, tensor in content["state_dict"].items():
            if name.endswith("token_scale"):
                tensor.fill_(scale)
        checkpoint.save(path, content)
    distributed.barrier()
    return tokenizer


def evenly_spread(dataset: Dataset, most: int) -> list[int]:
    """Numbers of at most so many items of a data set."""
    count = min(most, len(dataset))
    return [k * len(dataset) // count for k in range(count)]


class Evaluation(NamedTuple):
    """What was found over all images; features on the first process alone."""

    means: dict[str, float]  # PSNR and SSIM, and LPIPS if its network was given
    token_scale: float | None  # 1/std of sampled tokens; None where they have collapsed
    real: Features | None = None  # of the crops
    fake: Features | None = None  # of their reconstructions


def available_lpips(weights_dir: str | None) -> LPIPS | None:
    """LPIPS where its network is at hand."""
    there = pretrained.present(pretrained.FILES["vgg16"], weights_dir)
    return LPIPS(weights_dir) if there else None


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, batch: Tensor) -> tuple[Tensor, Posterior]:
    """uint8 [B, 3, H, W] → uint8 [B, 3, H, W], rounded as a saved image is, on the tokenizer's
    device, and the posterior of its tokens."""
    with full_float32():
        posterior = tokenizer.encode(images.to_float(batch.to(tokenizer.token_scale.device)))
        return images.to_uint8(tokenizer.decode(posterior.mean)), posterior


@torch.inference_mode()
def evaluate(
    tokenizer: Tokenizer,
    dataset: Dataset,
    process: Process,
    lpips: LPIPS | None = None,
    extractor: Extractor | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
) -> Evaluation:
    """Reconstruct every image once, over all processes, and compare 8-bit images.

    Args:
        tokenizer: in evaluation mode, on the process's device.
        dataset: whose items begin with an image, uint8 [3, H, W].
        lpips, extractor: networks for LPIPS and for the features of the rFID.
    """
    measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips} if lpips else {})
    collectors = [Collector(extractor) for _ in range(2)] if extractor else []
    moments, device, count = Moments(), process.device, len(dataset)
    rows = [torch.empty(0, len(measures), dtype=torch.float64, device=device)]
    loading = ("reconstructions", batch_size, num_workers)
    for numbers, batch in image_batches(dataset, process, *loading):
        levels, posterior = reconstruct(tokenizer, batch)
        moments.add(posterior)
        real, fake = (images.to_float(x.to(device)) for x in (batch, levels))
        with full_float32():
            found = [measure(fake, real).double() for measure in measures.values()]
        rows.append(torch.stack(found, dim=1))
        for collector, pixels in zip(collectors, (batch, levels), strict=False):
            collector.add(pixels, numbers)
    means = (distributed.all_reduce_sum(torch.cat(rows).sum(0)) / count).tolist()
    features = (collector.features() for collector in collectors)
    named = dict(zip(measures, means, strict=True))
    return Evaluation(named, moments.scale(device), *features)


def save_comparison(path: Path, tokenizer: Tokenizer, dataset: Dataset) -> None:
    """Save a grid: images of a data set, their reconstructions, and the absolute differences, three
    times as bright."""
    real = torch.stack([dataset[k][0] for k in evenly_spread(dataset, SHOWN)])
    fake = torch.cat([reconstruct(tokenizer, image[None])[0].cpu() for image in real])
    difference = (real.int() - fake.int()).abs().mul(DIFFERENCE_GAIN).clamp(max=255)
    grid = torch.cat([real, fake, difference.to(torch.uint8)])
    images.save_grid(path, grid, columns=len(real))
