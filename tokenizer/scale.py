"""Token scale: the factor that gives sampled tokens unit variance for stage two."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import checkpoint, distributed, images
from common.distributed import Process
from common.errors import UserError
from common.logger import progress_bar
from common.signals import ignore_signals
from tokenizer.checkpoints import load_on_all, read
from tokenizer.model import Tokenizer
from tokenizer.posterior import Posterior

SCALE_IMAGES = 50_000  # more make the scale no better


def image_batches(
    dataset: Dataset,
    numbers: Sequence[int],
    process: Process,
    name: str,
    batch_size: int = 32,
    num_workers: int = 0,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Batches of a data set's images of these numbers, and their images, uint8 [B, 3, H, W], dealt
    to the processes in turn: which images form a batch does not depend on how many there are."""
    whole = [numbers[k : k + batch_size] for k in range(0, len(numbers), batch_size)]
    mine = whole[process.rank :: process.world]
    loader = DataLoader(
        dataset, batch_sampler=mine, num_workers=num_workers, worker_init_fn=ignore_signals
    )
    with progress_bar(sum(map(len, mine)), name, "image", process.is_main) as bar:
        for these, (pixels, *_) in zip(mine, loader, strict=True):
            yield these, pixels
            bar.update(len(these))


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
def measure_scale(
    tokenizer: Tokenizer,
    dataset: Dataset,
    process: Process,
    limit: int = SCALE_IMAGES,
    **loading: int,
) -> float:
    """1/std of posterior samples over at most `limit` images, evenly spread over a data set, whose
    items begin with an image, uint8 [3, H, W]; the tokenizer keeps it. `loading`: batch_size and
    num_workers."""
    count, moments = min(limit, len(dataset)), Moments()
    numbers = [k * len(dataset) // count for k in range(count)]
    for _, batch in image_batches(dataset, numbers, process, "token scale", **loading):
        moments.add(tokenizer.encode(images.to_float(batch.to(process.device))))
    scale = moments.scale(process.device)
    if scale is None:
        raise UserError("the tokens of this tokenizer have no finite spread; was it trained?")
    tokenizer.token_scale.fill_(scale)
    return scale


def rescale(path: Path, dataset: Dataset, process: Process, **options: int) -> Tokenizer:
    """The tokenizer of our checkpoint, whose tokens' scale is measured (see `measure_scale`) and
    stored there. The first process reads the file, once, for all."""
    file = read(path) if process.is_main else None
    tokenizer = load_on_all(process, lambda: file.build())
    scale = measure_scale(tokenizer, dataset, process, **options)
    if file is not None:
        for name, tensor in file.state.items():
            if name.endswith("token_scale"):
                tensor.fill_(scale)
        checkpoint.save(path, file.content)
    distributed.barrier()
    return tokenizer
