"""Generation: images of conditions, of any width; whole folders of them, exactly.

Image `k` of a seed has its own noise, laid out by column: it is the same image in every batch, on
every process, and a longer one begins with the noise of a shorter one.

Wide images are decoded in tiles, which differ a little from the whole, since the decoder normalises
and attends over the whole width; neighbouring tiles fade into each other.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from generator.checkpoints import LoadedGenerator
from generator.config import listed
from generator.data import Tokenizer
from generator.sampling import Columns, SampleConfig, sample_columns

Ints = Sequence[int]
RELEASED = SampleConfig()
BLOCK = 64  # columns whose noise goes to the device together
PNG_END = b"IEND\xaeB`\x82"


def column_noise(seed: int, numbers: Ints, channels: int, device: torch.device) -> Iterator[Tensor]:
    """The starting noise [B, C] of images `numbers` of a seed, column by column without end."""
    streams = [seeding.stream(seed, "image", number) for number in numbers]
    while True:
        block = np.stack([stream.standard_normal((BLOCK, channels)) for stream in streams])
        noise = torch.from_numpy(block.astype(np.float32))
        if device.type == "cuda":  # so that copying waits for nothing
            noise = noise.pin_memory()
        yield from noise.to(device, non_blocking=True).unbind(1)


def decode_strips(
    tokenizer: Tokenizer, columns: Iterable[Tensor], config: SampleConfig
) -> Iterator[Tensor]:
    """Strips [B, 3, H, w] of varying width, from left to right, as soon as their columns [B, C]
    are there, with or without an end; an image of one tile, or of a grid of tokens, is decoded
    whole, as released."""
    if tokenizer.rows > 1:
        yield tokenizer.decode_tokens(torch.stack(tuple(columns), dim=1))
        return
    width, size, overlap = tokenizer.column_width, config.decode_columns, config.decode_overlap
    held: deque[Tensor] = deque(maxlen=size)
    waiting = 0  # columns that are not out yet
    tail: Tensor | None = None  # the end of the last tile, over which the next one fades in
    for token in columns:
        held.append(token)
        waiting += 1
        if waiting == size:
            pixels = _fade(tail, tokenizer.decode_tokens(torch.stack(tuple(held), dim=1)))
            end = pixels.shape[3] - overlap * width
            tail, waiting = pixels[..., end:], overlap
            yield pixels[..., :end]
    if tail is not None and waiting == overlap:
        yield tail
    else:
        # The last tile is as wide as the others, and begins with columns that are out already.
        pixels = tokenizer.decode_tokens(torch.stack(tuple(held), dim=1))
        yield _fade(tail, pixels[..., -waiting * width :])


def _fade(tail: Tensor | None, pixels: Tensor) -> Tensor:
    """The pixels of a tile, at whose beginning the last tile's tail gives way to it."""
    if tail is None:
        return pixels
    width = tail.shape[3]
    weight = (torch.arange(width, device=tail.device) + 0.5) / max(width, 1)
    faded = torch.lerp(tail, pixels[..., :width], weight.to(tail.dtype))
    return torch.cat([faded, pixels[..., width:]], dim=3)


@torch.no_grad()
def generate_tokens(
    generator: LoadedGenerator,
    labels: Ints,
    config: SampleConfig,
    numbers: Ints | None = None,
    given: Columns | None = None,
    shown: bool = False,
) -> Tensor:
    """Tokens [B, L, C] in the model's scale; arguments are those of `generate`."""
    model, numbers = generator.model, range(len(labels)) if numbers is None else numbers
    config = replace(config, columns=config.columns or generator.columns)
    model.layout.check(config.columns, "--token_num")
    noise = column_noise(config.seed, numbers, model.config.channels, model.device)
    classes = torch.tensor(labels, device=model.device)
    columns = sample_columns(model, classes, islice(noise, config.columns), config, given)
    tokens, wide = [], config.columns >= BLOCK
    with progress_bar(config.columns, "columns", "column", shown and wide, leave=False) as bar:
        for token in columns:
            tokens.append(token)
            bar.update()
    return torch.stack(tokens, dim=1)


@torch.no_grad()
def generate(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    labels: Ints,
    config: SampleConfig = RELEASED,
    numbers: Ints | None = None,
    given: Columns | None = None,
    side: str = "right",
    shown: bool = False,
) -> Iterator[Tensor]:
    """Images of classes `labels`, one after the other, uint8 [3, H, W] on the CPU; as many are
    decoded at once as make one tile.

    Args:
        numbers: of the images, which decide their noise; 0 … B − 1 if not given.
        given: columns that are not sampled, in the model's scale; see `sample_columns`.
        side: `left` for images in the mirror, as those are that go on to the left.
        shown: whether wide images have a progress bar over their columns.
    """
    tokens = generate_tokens(generator, labels, config, numbers, given, shown)
    for some in tokens.split(max(1, config.decode_columns // tokens.shape[1])):
        strips = decode_strips(tokenizer, some.unbind(1), config)
        pixels = torch.cat([images.to_uint8(strip).cpu() for strip in strips], dim=3)
        yield from pixels.flip(3) if side == "left" else pixels


@torch.no_grad()
def scroll(
    generator: LoadedGenerator, tokenizer: Tokenizer, labels: Ints, config: SampleConfig = RELEASED
) -> Iterator[Tensor]:
    """Images without end, in uint8 strips [B, 3, H, w] from left to right at constant memory; the
    smaller `config.decode_columns`, the sooner they come."""
    model = generator.model
    model.layout.check("no end", "scroll")
    config = replace(config, columns=config.columns or generator.columns)
    noise = column_noise(config.seed, range(len(labels)), model.config.channels, model.device)
    columns = sample_columns(model, torch.tensor(labels, device=model.device), noise, config)
    for strip in decode_strips(tokenizer, columns, config):
        yield images.to_uint8(strip).cpu()


def redraw(
    generator: LoadedGenerator,
    labels: Ints,
    tokens: Tensor,
    replaced: Mapping[int, Tensor | None],
    config: SampleConfig,
) -> Tensor:
    """Tokens [B, L, C] of `generate_tokens` in which single columns are replaced, [B, C] by their
    number (None samples the column), and all later ones follow from them."""
    length = tokens.shape[1]
    if not set(replaced) <= set(range(length)):
        raise UserError(f"replaced columns: found {sorted(replaced)}, expected 0 … {length - 1}")
    given = dict(enumerate(tokens[:, : min(replaced, default=length)].unbind(1)))
    given |= {column: token for column, token in replaced.items() if token is not None}
    return generate_tokens(generator, labels, replace(config, columns=length), None, given)


def read_prefix(path: str | Path, tokenizer: Tokenizer, side: str = "right") -> Tensor:
    """An image to go on with on a side, [1, 3, H, W] in [-1, 1], for the left in the mirror: as
    high as the tokenizer's, in proportion, and of whole columns, cut at its beginning."""
    image = images.resize_to_cover(images.read_rgb(path), tokenizer.height, 1)
    width = image.shape[2] - image.shape[2] % tokenizer.column_width
    if width < 2 * tokenizer.column_width:
        raise UserError(f"{path}: found {image.shape[2]} pixels of width, expected two columns")
    image = image.flip(2) if side == "left" else image
    return images.to_float(image[..., -width:])[None]


@torch.no_grad()
def encode_prefix(given: Tensor, tokenizer: Tokenizer) -> Columns:
    """Columns [B, C] of images [B, 3, H, W] in [-1, 1], by their number."""
    mean = tokenizer.encode(given.to(tokenizer.token_scale.device)).mean  # [B, M, C]
    return dict(enumerate(tokenizer.scaled(mean).unbind(1)))


def continue_image(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    given: Tensor,
    labels: Ints,
    columns: int,
    side: str = "right",
    config: SampleConfig = RELEASED,
) -> Iterator[Tensor]:
    """Given images [B, 3, H, W] in [-1, 1], continued by some columns; otherwise as `generate`.

    On the `left` they are continued in the mirror, which suits models trained with random flips.
    """
    generator.model.layout.check("a part", "the given image")
    prefix = encode_prefix(given.flip(3) if side == "left" else given, tokenizer)
    config = replace(config, columns=len(prefix) + columns)
    return generate(generator, tokenizer, labels, config, None, prefix, side)


def image_labels(choice: str, classes: int, seed: int, count: int) -> list[int]:
    """The class of each of `count` images: `balanced`, image k has class k modulo their number;
    `random`, from the image's own stream; or numbers taken in turn: `3,7-9`."""
    if choice == "random":
        return [int(seeding.stream(seed, "label", k).integers(classes)) for k in range(count)]
    chosen = range(classes) if choice == "balanced" else listed("--labels", choice, classes)
    return [chosen[k % len(chosen)] for k in range(count)]


def image_path(folder: Path, number: int) -> Path:
    """The file of an image of a folder."""
    return folder / f"{number:06d}.png"


def whole_images(folder: Path, count: int) -> set[int]:
    """Numbers of the images 0 … count − 1 that lie in a folder and are whole; no other file may."""
    done, numbers = set(), {image_path(folder, k): k for k in range(count)}
    for file in folder.iterdir() if folder.exists() else ():
        if file in numbers:
            with file.open("rb") as image:
                image.seek(max(0, file.stat().st_size - len(PNG_END)))
                if image.read() == PNG_END:  # a full disk leaves other ends
                    done.add(numbers[file])
        elif file.suffix != ".tmp":
            raise UserError(f"{folder}: found {file.name}, expected the {count} of --num_images")
    return done


def generate_folder(
    folder: Path,
    labels: Ints,
    batch: int,
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    config: SampleConfig,
    process: Process,
    prefix: Columns | None = None,
    side: str = "right",
) -> int:
    """Generate what is missing of the images of `labels`; all processes call this together.

    Batches are always the same ones, and one that was begun is sampled again as a whole, since how
    a product is rounded depends on the number of its rows: so any number of processes, with or
    without a break, leaves the same bytes. Returns how many were missing; `prefix` [1, C] is what
    all begin with, on the `side` left in the mirror.
    """
    count, done = len(labels), distributed.load_on_all(lambda: whole_images(folder, len(labels)))
    batches = [range(count)[start : start + batch] for start in range(0, count, batch)]
    batches = [numbers for numbers in batches if not done.issuperset(numbers)]
    with progress_bar(count, "images", "image", process.is_main, initial=len(done)) as bar:
        for i, numbers in enumerate(batches):
            if i % process.world == process.rank:
                some, how = [labels[k] for k in numbers], (prefix, side, process.is_main)
                found = generate(generator, tokenizer, some, config, numbers, *how)
                for k, image in zip(numbers, found, strict=True):
                    if k not in done:
                        images.save_image(image_path(folder, k), image)
            bar.update(len(set(numbers) - done))  # others advance at about the same pace
    distributed.barrier()
    return count - len(done)
