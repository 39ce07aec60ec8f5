"""Generation: images of conditions, of any width; whole folders of them, exactly.

Image `k` of a seed has its own noise, laid out by column: it is the same image in every batch, on
every process, and a longer one begins with the noise of a shorter one.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import distributed, images, seeding
from common.distributed import Process
from common.errors import UserError
from common.logger import progress_bar
from generator.checkpoints import LoadedGenerator, on_first
from generator.data import Tokenizer
from generator.decode import decode, decode_strips
from generator.sampling import (
    COLUMNS,
    Columns,
    Progress,
    SampleConfig,
    numbered,
    sample,
    sample_columns,
)

BLOCK = 64  # columns whose noise goes to the device together
LONG = 64  # columns from which an image has a progress bar of its own
PNG_END = b"IEND\xaeB`\x82"


def column_noise(
    seed: int, numbers: Sequence[int], channels: int, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The starting noise [B, C] of images `numbers` of a seed, column by column without end."""
    streams = [seeding.stream(seed, "image", number) for number in numbers]
    while True:
        block = np.stack([stream.standard_normal((BLOCK, channels)) for stream in streams])
        noise = torch.from_numpy(block.astype(np.float32))
        if torch.device(device).type == "cuda":  # so that copying waits for nothing
            noise = noise.pin_memory()
        yield from noise.to(device, non_blocking=True).unbind(1)


def image_noise(
    seed: int,
    numbers: Sequence[int],
    columns: int,
    channels: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The first columns of `column_noise`, [B, L, C]."""
    noise = column_noise(seed, numbers, channels, device)
    return torch.stack(list(islice(noise, columns)), dim=1)


@torch.no_grad()
def generate_tokens(
    generator: LoadedGenerator,
    labels: Sequence[int],
    config: SampleConfig,
    numbers: Sequence[int] | None = None,
    given: Columns | None = None,
    progress: Progress = iter,
) -> Tensor:
    """Tokens [B, L, C] in the model's scale; arguments are those of `generate`."""
    model, columns = generator.model, config.columns or generator.columns or COLUMNS
    numbers = range(len(labels)) if numbers is None else numbers
    noise = image_noise(config.seed, numbers, columns, model.config.channels, model.device)
    conditions = torch.tensor(labels, device=model.device)
    return sample(model, conditions, noise, config, given, progress)


def generate(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    labels: Sequence[int],
    config: SampleConfig | None = None,
    numbers: Sequence[int] | None = None,
    given: Columns | None = None,
    progress: Progress = iter,
) -> Iterator[Tensor]:
    """Images of classes `labels`, one after the other.

    Args:
        generator, tokenizer: on one device.
        labels: of the B images.
        config: how they are sampled; as released, if not given.
        numbers: of the images, which decide their noise; 0 … B − 1 if not given.
        given: columns [B, C] that are not sampled, in the model's scale; see `sample_columns`.
        progress: is handed the columns while they are sampled, and passes them on.

    Returns:
        uint8 images [3, H, W] on the CPU, as wide as `config.columns`.
    """
    config = config or SampleConfig()
    tokens = generate_tokens(generator, labels, config, numbers, given, progress)
    with torch.no_grad():
        yield from decode(tokenizer, tokens, config)


@torch.no_grad()
def scroll(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    labels: Sequence[int],
    config: SampleConfig | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Images without end, in uint8 strips [B, 3, H, w] from left to right at constant memory.

    Arguments are those of `generate`. A strip comes when its tile is decoded: the smaller
    `config.decode_columns`, the sooner.
    """
    model, config = generator.model, config or SampleConfig()
    numbers = range(len(labels)) if numbers is None else numbers
    noise = column_noise(config.seed, numbers, model.config.channels, model.device)
    columns = sample_columns(model, torch.tensor(labels, device=model.device), noise, config)
    for strip in decode_strips(tokenizer, columns, config):
        yield images.to_uint8(strip).cpu()


@torch.no_grad()
def redraw(
    generator: LoadedGenerator,
    labels: Sequence[int],
    tokens: Tensor,
    replaced: Mapping[int, Tensor | None],
    config: SampleConfig,
    noise: Tensor | None = None,
) -> Tensor:
    """Tokens in which single columns are replaced, and all later ones follow from them.

    Args:
        generator, labels, config: as the tokens were generated with.
        tokens: [B, L, C] of `generate_tokens`.
        replaced: columns [B, C] by their number; None samples the column from `noise`.
        noise: [B, L, C] that sampled columns start from; that of images 0 … B − 1, if not given.
    """
    model, (batch, length, channels) = generator.model, tokens.shape
    if not replaced:
        return tokens
    if noise is None:
        noise = image_noise(config.seed, range(batch), length, channels, model.device)
    given = dict(numbered(tokens[:, : max(0, min(replaced))]))
    given |= {column: token for column, token in replaced.items() if token is not None}
    if not 0 <= min(replaced) <= max(replaced) < length:
        raise UserError(f"replaced columns: found {sorted(replaced)}, expected 0 … {length - 1}")
    return sample(model, torch.tensor(labels, device=model.device), noise, config, given)


def read_prefix(path: str | Path, tokenizer: Tokenizer, side: str = "right") -> Tensor:
    """An image to go on with: as high as the tokenizer's, and of whole columns.

    It keeps its proportions; beside whole columns, it is cut at the end that is not continued.
    Returns [1, 3, H, W] in [-1, 1].
    """
    image = images.resize_to_cover(images.read_rgb(path), tokenizer.height, 1)
    width = image.shape[2] // tokenizer.column_width * tokenizer.column_width
    if width < 2 * tokenizer.column_width:
        raise UserError(
            f"{path}: {image.shape[2]} pixels wide at a height of {tokenizer.height}, expected "
            f"at least two columns of {tokenizer.column_width}"
        )
    kept = image[..., -width:] if side == "right" else image[..., :width]
    return images.to_float(kept)[None]


@torch.no_grad()
def encode_prefix(given: Tensor, tokenizer: Tokenizer, side: str = "right") -> Columns:
    """Columns [B, C] of images [B, 3, H, W] in [-1, 1], with which others can go on.

    For the left side they are those of the mirrored images; see `continue_image`.
    """
    if side not in ("right", "left"):
        raise UserError(f"side: found {side!r}, expected right or left")
    mean = tokenizer.encode(given.flip(3) if side == "left" else given).mode()  # [B, M, C]
    return numbered(tokenizer.scaled(mean))


def continue_image(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    given: Tensor,
    labels: Sequence[int],
    columns: int,
    side: str = "right",
    config: SampleConfig | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Given images, continued by some columns to the right or to the left.

    To the left means: the images are mirrored, encoded, continued to the right, and the result is
    mirrored back, which suits a model that was trained with random flips, as the paper's are.

    Args:
        generator, tokenizer: on one device.
        given: [B, 3, H, W] in [-1, 1] on that device.
        columns: that are sampled beside each.
        side: `right` or `left`.
        labels, config, numbers: see `generate`.

    Returns:
        uint8 images [3, H, W'] on the CPU; the given part is what the tokenizer makes of it.
    """
    prefix = encode_prefix(given, tokenizer, side)
    config = replace(config or SampleConfig(), columns=len(prefix) + columns)
    for image in generate(generator, tokenizer, labels, config, numbers, prefix):
        yield image.flip(2) if side == "left" else image


def image_labels(choice: str, class_names: Sequence[str], seed: int) -> Callable[[int], int]:
    """Which class the image of a number has, whatever the number of images.

    Args:
        choice: `balanced`, image k has class k modulo the number of classes; `random`, evenly,
            from the image's own stream; or names and numbers of classes, taken in turn, such as
            `3,7-9,sea`.
        class_names: of all classes.
        seed: of random classes.
    """
    count = len(class_names)
    if choice == "random":
        return lambda k: int(seeding.stream(seed, "label", k).integers(count))
    if choice == "balanced":
        return lambda k: k % count
    chosen = [label for part in choice.split(",") for label in _classes(part.strip(), class_names)]
    return lambda k: chosen[k % len(chosen)]


def _classes(part: str, names: Sequence[str]) -> range:
    """The classes of one name, number or span of numbers."""
    if part in names:
        return range(names.index(part), names.index(part) + 1)
    first, _, last = part.partition("-")
    if first.isdecimal() and (last or first).isdecimal():
        span = range(int(first), int(last or first) + 1)
        if span and span[-1] < len(names):
            return span
    shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    raise UserError(
        f"--labels: found {part!r}, expected balanced, random, or classes by their name or number, "
        f"0 … {len(names) - 1} ({shown})"
    )


def image_path(folder: Path, number: int) -> Path:
    """The file of an image of a folder."""
    return folder / f"{number:06d}.png"


def whole_images(folder: Path, count: int) -> set[int]:
    """Numbers of the images 0 … count − 1 that lie in a folder and are whole.

    Raises:
        UserError: there is a file that is none of them.
    """
    done = set()
    numbers = {image_path(folder, k).name: k for k in range(count)}
    for file in os.scandir(folder) if folder.exists() else ():
        if file.name.endswith(".tmp"):
            continue
        if file.name not in numbers:
            raise UserError(
                f"{folder}: found {file.name}, which is none of the {count} images of "
                "--num_images; expected nothing else there"
            )
        with open(file.path, "rb") as image:
            image.seek(max(0, file.stat().st_size - len(PNG_END)))
            if image.read() == PNG_END:  # a full disk leaves other ends
                done.add(numbers[file.name])
    return done


def generate_folder(
    folder: Path,
    count: int,
    batch: int,
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    label: Callable[[int], int],
    config: SampleConfig,
    process: Process,
    prefix: Columns | None = None,
    side: str = "right",
) -> int:
    """Generate what is missing of images 0 … count − 1; all processes call this together.

    Images are sampled in batches that are always the same ones. A batch that was begun is sampled
    again as a whole, since how a product of matrices is rounded depends on the number of its rows:
    so any number of processes, with or without a break, leaves the same bytes.

    Args:
        folder: of the images, which holds nothing else.
        count, batch: images in all, and those that are sampled together.
        generator, tokenizer: on the device of the process.
        label: of the image of a number.
        prefix, side: columns [1, C] with which all images begin, and where they go on.

    Returns:
        How many images were missing.
    """
    done = on_first(lambda: whole_images(folder, count))
    starts = range(0, count, batch)
    batches = [range(start, min(start + batch, count)) for start in starts]
    batches = [numbers for numbers in batches if not done.issuperset(numbers)]
    columns = config.columns or COLUMNS
    shown, long = process.is_main, process.is_main and columns >= LONG

    def watched(found: Iterator[Tensor]) -> Iterator[Tensor]:
        """Beside a bar of their own, for images that take minutes."""
        with progress_bar(columns, "columns", "column", long, passing=True) as bar:
            for column in found:
                yield column
                bar.update()

    with progress_bar(count, "images", "image", shown, initial=len(done)) as bar:
        for i, numbers in enumerate(batches):
            if i % process.world == process.rank:
                given = {
                    k: c.to(generator.model.device).expand(len(numbers), -1)
                    for k, c in (prefix or {}).items()
                }
                labels = [label(k) for k in numbers]
                found = generate(generator, tokenizer, labels, config, numbers, given, watched)
                for k, image in zip(numbers, found, strict=True):
                    if k not in done:
                        path = image_path(folder, k)
                        images.save_image(path, image.flip(2) if side == "left" else image)
            bar.update(len(set(numbers) - done))  # others advance at about the same pace
        distributed.barrier()
    return count - len(done)
