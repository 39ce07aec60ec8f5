"""What the generator is trained on: pictures, or tokens that were cached.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import config, images
from common.data.folders import ImageFolder
from common.data.sampler import DrawSampler
from common.distributed import Process
from common.errors import UserError
from common.precision import full_float32
from common.seeding import BatchDraws
from common.signals import leave_signals_to_the_trainer

# a batch of the loader, this process's rows of random numbers → tokens [B, L, C] in the model's
# scale, labels [B]
Tokenise = Callable[[Any, BatchDraws], tuple[Tensor, Tensor]]


class Tokenizer(Protocol):
    """What is needed of a tokenizer; see `tokenizer.model`."""

    height: int
    column_width: int

    def encode(self, images: Tensor) -> Any: ...

    def posterior(self, mean: Tensor) -> Any: ...

    def sample_tokens(self, posterior: Any, draws: BatchDraws) -> Tensor: ...


def add_image_flags(parser: Any) -> None:
    """Flags that choose pictures."""
    add = parser.add_argument
    add("--data_path", help="folder of class folders of images (default: data in --config_path)")
    add("--img_size", type=int, help="width of the images of --data_path (default: their height)")


def image_data(flags: argparse.Namespace, tokenizer: Tokenizer, train: bool, seed: int) -> Dataset:
    """Pictures of `--data_path`, or of `data.params.train` in `--config_path`.

    Args:
        flags: see `add_image_flags`; also `config_path` and `overrides`.
        tokenizer: whose height and column width the pictures must have.
        train: random crops and flips of `--data_path`.
        seed: of these.

    Raises:
        UserError: no data given, or pictures that the tokenizer does not take.
    """
    unit = tokenizer.column_width
    if flags.data_path:
        width = flags.img_size or tokenizer.height
        if width % unit or width < 2 * unit:
            raise UserError(
                f"--img_size: found {width}, expected a multiple of the column width {unit}, "
                f"at least {2 * unit}"
            )
        return ImageFolder(flags.data_path, tokenizer.height, train, seed=seed, width=width)
    if flags.img_size is not None:
        raise UserError("--img_size: given without --data_path, whose images it is the width of")

    node = OmegaConf.select(config.load(flags.config_path, flags.overrides), "data.params.train")
    if not isinstance(node, DictConfig):
        raise UserError(
            f"--data_path: not given, and {flags.config_path} has no data.params.train either"
        )
    dataset = config.instantiate(node, "data.params.train")
    height, width = dataset[0][0].shape[1:]
    if height != tokenizer.height or width % unit or width < 2 * unit:
        raise UserError(
            f"data.params.train: found pictures of {height} x {width} pixels, expected a height "
            f"of {tokenizer.height} and a width that is a multiple of {unit}, at least {2 * unit}"
        )
    return dataset


def count_columns(dataset: Dataset, tokenizer: Tokenizer) -> int:
    """L, of pictures [3, H, W] or of cached tokens [L, C]."""
    item = dataset[0][0]
    return len(item) if item.is_floating_point() else item.shape[2] // tokenizer.column_width


def training_batches(
    dataset: Dataset,
    batch_size: int,
    accumulate: int,
    process: Process,
    seed: int,
    num_workers: int,
) -> DataLoader:
    """Batches of this process, all of them full, in an order that the seed and epoch decide.

    Of `accumulate` of them an update is made. The sampler counts updates, so that it can go on in
    the middle of an epoch, and leaves out the images at its end that do not fill one.

    Raises:
        UserError: there are fewer images than one update of all processes takes.
    """
    together = batch_size * accumulate * process.world
    if len(dataset) < together:
        raise UserError(
            f"--batch_size: found {batch_size} x {accumulate} pass(es) on {process.world} "
            f"process(es), an update of {together}, but there are {len(dataset)} images; expected "
            "no more than these"
        )
    sampler = DrawSampler(len(dataset), process.rank, process.world, batch_size * accumulate, seed)
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=process.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_trainer,
    )


def tokenise(
    tokenizer: Tokenizer, batch: Sequence[Tensor], draws: BatchDraws, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A batch of pictures or cached means → tokens [B, L, C] in the model's scale, labels [B]."""
    items, labels = (x.to(device, non_blocking=True) for x in batch)
    if items.is_floating_point():
        mean = items  # [B, L, C]
    else:
        with torch.inference_mode(), full_float32():
            mean = tokenizer.encode(images.to_float(items)).mode()  # [B, L, C]
    return tokenizer.sample_tokens(tokenizer.posterior(mean), draws), labels
