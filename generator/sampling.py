"""Drawing columns one after the other; a window bounds what each costs, however wide the image.

Shapes: B batch, L columns, C token channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from generator.attention import KeysValues
from generator.model import Generator
from generator.transformer import ClassMemory


@dataclass(frozen=True)
class Guidance:
    """How far the class is exaggerated at each column (classifier-free guidance).

    Args:
        scale: 1 is the conditional model alone.
        schedule: `linear` grows from 1 to `scale` over `ramp` columns and stays there;
            `constant` is `scale` everywhere.
        ramp: columns of the linear growth.
    """

    scale: float = 1.0
    schedule: str = "linear"
    ramp: int = 16

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "constant"):
            raise UserError(
                f"guidance schedule: found {self.schedule!r}, expected linear or constant"
            )
        if self.ramp < 1 or not math.isfinite(self.scale):
            raise UserError(
                f"guidance: found scale {self.scale} over a ramp of {self.ramp} columns, expected "
                "a finite number over at least one"
            )

    def at(self, column: int) -> float:
        """The scale at a column, 0 first."""
        if self.schedule == "constant":
            return self.scale
        return 1.0 + (self.scale - 1.0) * min((column + 1) / self.ramp, 1.0)


class ColumnReader:
    """The transformer, fed one column at a time; holds the last `window` columns of each layer
    (window 0: all)."""

    def __init__(
        self, model: Generator, memory: ClassMemory, last_position: int | None = None
    ) -> None:
        self.last_position = last_position
        self.model = model
        self.memory = memory
        self.past: list[KeysValues | None] = [None] * len(model.layers)
        self.position = 0

    def first(self) -> Tensor:
        """The vector that predicts column 0, [B, D]."""
        return self.model.norm_out(self.memory.last)

    def read(self, token: Tensor) -> Tensor:
        """The next column [B, C] → the vector that predicts the one after it, [B, D]."""
        window = self.model.config.window
        positions = torch.tensor([self.position], device=token.device)
        turns = self.model.turns(positions, self.last_position)
        x = self.model.norm_in(self.model.token_in(token[:, None]))  # [B, 1, D]
        for i, layer in enumerate(self.model.layers):
            x, (k, v) = layer.step(x, self.memory.keys_values[i], turns, self.past[i])
            keep = slice(-window if window else None, None)
            self.past[i] = (k[:, :, keep], v[:, :, keep])
        self.position += 1
        return self.model.norm_out(x[:, 0])


@torch.inference_mode()
def sample_columns(
    model: Generator,
    labels: Tensor,
    noise: Callable[[int], Tensor],
    guidance: Guidance,
    steps: int = 100,
    prefix: Tensor | None = None,
    last_position: int | None = None,
) -> Iterator[Tensor]:
    """Columns [B, C] without end, the given ones first.

    Args:
        model: in evaluation mode.
        labels: [B] in 0 … classes − 1.
        noise: column number → starting noise [B, C].
        guidance: scale a column; where it is 1 throughout, one branch is run.
        steps: of Euler's method.
        prefix: [B, M, C] columns to start with, in the model's scale.
        last_position: keeps a long run inside the trained positions; see `Generator.turns`.

    Raises:
        UserError: no labels, or one that is no class of the model; no steps.
    """
    if not len(labels) or steps < 1:
        raise UserError(f"found {len(labels)} labels and {steps} steps, expected at least one each")
    if not 0 <= int(labels.min()) <= int(labels.max()) < model.config.classes:
        raise UserError(
            f"class labels: found {int(labels.min())} … {int(labels.max())}, "
            f"expected 0 … {model.config.classes - 1}"
        )
    batch = len(labels)
    branches = [labels]
    if guidance.scale != 1.0:
        branches.append(torch.full_like(labels, model.no_class))
    distinct, row = torch.cat(branches).unique(return_inverse=True)
    reader = ColumnReader(model, model.read_classes(distinct).select(row), last_position)
    hidden = reader.first()  # [2B, D]
    column = 0
    while True:
        if prefix is not None and column < prefix.shape[1]:
            token = prefix[:, column]
        else:
            unconditional = hidden[batch:] if len(branches) > 1 else None
            token = model.head.sample(
                noise(column), hidden[:batch], unconditional, guidance.at(column), steps
            )
        yield token  # [B, C]
        hidden = reader.read(token.repeat(len(branches), 1))
        column += 1


def sample(
    model: Generator,
    labels: Tensor,
    noise: Tensor,
    guidance: Guidance,
    steps: int = 100,
    prefix: Tensor | None = None,
    last_position: int | None = None,
) -> Tensor:
    """As many columns as there is noise for: noise [B, L, C] → tokens [B, L, C]; otherwise as
    `sample_columns`."""
    length = noise.shape[1]
    if len(noise) != len(labels) or (prefix is not None and len(prefix) != len(labels)):
        raise UserError(
            f"batch: found {len(labels)} labels, noise for {len(noise)} images"
            + (f" and prefixes of {len(prefix)}" if prefix is not None else "")
            + ", expected the same number"
        )
    if length < 1 or (prefix is not None and prefix.shape[1] > length):
        given = 0 if prefix is None else prefix.shape[1]
        raise UserError(f"columns: found {length} after a prefix of {given}, expected more")
    columns = sample_columns(
        model, labels, lambda i: noise[:, i], guidance, steps, prefix, last_position
    )
    return torch.stack([next(columns) for _ in range(length)], dim=1)
