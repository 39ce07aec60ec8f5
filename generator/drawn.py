"""A series of images into its folder, by all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from common import distributed, images
from common.distributed import Process
from common.logger import progress
from generator.decoding import Decoder
from generator.model import Generator
from generator.pipeline import generate
from generator.recipe import Recipe
from generator.series import Series, image_labels

LONG = 64  # columns from which an image has a progress bar of its own


def draw_series(
    series: Series,
    model: Generator,
    decoder: Decoder,
    class_names: Sequence[str],
    recipe: Recipe,
    process: Process,
) -> int:
    """Draw what is missing of a series; all processes call this together.

    Args:
        series: which images, and where.
        model, decoder: on the device of the process.
        class_names: of the model.
        recipe: of the images.
        process: this one.

    Returns:
        How many images were missing.
    """
    done = series.done()
    distributed.barrier()  # all processes have seen the same files
    label, shown = image_labels(recipe.labels, class_names, recipe.seed), process.is_main
    prefix = recipe.prefix.columns if recipe.prefix else {}
    mirrored = recipe.prefix is not None and recipe.prefix.side == "left"

    def columns_drawn(columns: Iterator[Tensor]) -> Iterator[Tensor]:
        """Passes them on beside a bar of their own, for images that take minutes."""
        bar = progress(
            recipe.columns, "columns", "column", shown and recipe.columns >= LONG, passing=True
        )
        with bar:
            for column in columns:
                yield column
                bar.update()

    with progress(series.count, "images", "image", shown, initial=len(done)) as bar:
        for numbers in series.batches(done)[process.rank :: process.world]:
            given = {i: c.to(model.device).expand(len(numbers), -1) for i, c in prefix.items()}
            pictures = generate(
                model,
                decoder,
                [label(k) for k in numbers],
                numbers,
                recipe.columns,
                recipe.sampling,
                recipe.seed,
                given,
                recipe.pieces,
                columns_drawn,
            )
            for k, picture in zip(numbers, pictures, strict=True):
                if k not in done:
                    images.save_image(series.path(k), picture.flip(2) if mirrored else picture)
            if shown:
                bar.update(len(series.done()) - bar.n)  # those of all processes
        distributed.barrier()
        bar.update(series.count - bar.n)
    return series.count - len(done)
