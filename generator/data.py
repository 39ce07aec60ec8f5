"""Training data of the generator: images, or tokens that were cached.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common import images
from common.config import instantiate, load, setting
from common.data.folders import ImageFolder
from common.data.latents import LatentHeader
from common.data.sampler import DrawSampler
from common.distributed import Process, broadcast_object
from common.errors import UserError
from common.precision import full_float32
from common.seeding import BatchDraws
from common.signals import ignore_signals
from generator.config import TrainConfig

Tokenizer = Any  # a `tokenizer.model.Tokenizer`, which this stage knows by its methods alone


@dataclass(frozen=True)
class ImageConfig:
    """Which images, and what reads them."""

    config_path: str | None = setting(None, "YAML file with the tokenizer, and maybe data")
    data_path: str | None = setting(None, "folder of class folders (default: data.params.train)")
    img_size: int | None = setting(None, "width of these images (default: their height)", min=1)
    interpolation: str = setting(
        "bicubic", "resizing; released: pil_bilinear", choices=get_args(images.Interpolation)
    )
    num_workers: int = setting(10, "loader processes, no more than there are cores", min=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def image_data(
    given: ImageConfig, overrides: Sequence[str], of: Any, train: bool, seed: int
) -> Dataset:
    """Images of `data_path`, with random crops and flips if `train`, or of `data.params.train` in
    `config_path` with `overrides`; of the height and whole columns `of` a tokenizer or header."""
    height, column_width, where = of.height, of.column_width, "data.params.train"
    if given.data_path:
        where, width = "--img_size", given.img_size or height
        how = {"seed": seed, "width": width, "interpolation": given.interpolation}
        dataset: Dataset = ImageFolder(given.data_path, size=height, train=train, **how)
    elif given.img_size:
        raise UserError("--img_size: given without --data_path, whose images it is the width of")
    else:
        node = given.config_path and OmegaConf.select(load(given.config_path, overrides), where)
        if node is None:
            raise UserError(f"--data_path: not given, and --config_path has no {where} either")
        dataset = instantiate(node, where)
    size = dataset[0][0].shape[1:]
    if size[0] != height or size[1] % column_width or size[1] < 2 * column_width:
        expected = f"{height} x n·{column_width}, n ≥ 2"
        raise UserError(f"{where}: found {size[0]} x {size[1]} pixels, expected {expected}")
    return dataset


def describe_tokens(
    tokenizer: Tokenizer, process: Process, class_names: Sequence[str] = (), data: Any = None
) -> LatentHeader:
    """What training needs to know of a tokenizer, as cached tokens say it, and what they are of;
    all processes call this together, and the first one hashes the weights."""
    fingerprint = broadcast_object(tokenizer.fingerprint if process.is_main else "")
    scale, std = float(tokenizer.token_scale), float(tokenizer.std)
    size = tokenizer.height, tokenizer.column_width
    return LatentHeader(fingerprint, scale, std, *size, list(class_names), data, tokenizer.rows)


@dataclass(frozen=True)
class TokenSampler:
    """Draws the column tokens of a batch, in the model's scale."""

    encode: Callable[[Tensor], Tensor] | None  # from [-1, 1] to means; None: batches are means
    posterior: Callable[[Tensor, float], Any]  # of means [B, L, C] and the largest noise
    std: float  # the largest noise
    scale: float  # of the model's tokens over the posterior's
    device: torch.device

    @torch.no_grad()
    def __call__(self, batch: Sequence[Tensor], draws: BatchDraws) -> tuple[Tensor, Tensor]:
        """A batch, and this process's rows of the draws → tokens [B, L, C] and labels [B]."""
        items, labels = (x.to(self.device, non_blocking=True) for x in batch)
        if self.encode is not None:
            with torch.inference_mode(), full_float32():
                items = self.encode(images.to_float(items))
        return self.posterior(items.float(), self.std).sample(draws) * self.scale, labels


def training_batches(
    dataset: Dataset, config: TrainConfig, process: Process, workers: int
) -> DataLoader:
    """Full batches of this process, in an order that the seed and epoch decide, without the images
    at the end that do not fill an update, of `accumulate` batches."""
    share = config.batch_size * config.accumulate
    if len(dataset) < share * process.world:
        found = f"found {share * process.world} images an update"
        raise UserError(f"--batch_size: {found}, expected at most the {len(dataset)} there are")
    sampler = DrawSampler(len(dataset), process.rank, process.world, share, config.seed)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    options |= {"pin_memory": process.device.type == "cuda", "worker_init_fn": ignore_signals}
    return DataLoader(dataset, config.batch_size, sampler=sampler, **options)


def evaluation_batches(
    dataset: Dataset, config: TrainConfig, process: Process, workers: int
) -> DataLoader:
    """This process's whole batches of at most `eval_images` items, evenly spread over the data."""
    together, length = config.batch_size * process.world, len(dataset)
    count = min(config.eval_images, length) // together * together
    if not count:
        raise UserError(f"--eval_images: expected at least the {together} images of one batch")
    chosen = [k * length // count for k in range(process.rank, count, process.world)]
    workers_of = {"num_workers": workers, "worker_init_fn": ignore_signals}
    return DataLoader(Subset(dataset, chosen), config.batch_size, **workers_of)
