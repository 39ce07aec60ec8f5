"""Drawing columns one after the other; a window bounds what each costs, however wide the image.

Shapes: B batch, L columns, C token channels, D width.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import UserError
from generator.drawing import Drawer
from generator.guidance import Guidance
from generator.kv_cache import ColumnReader
from generator.model import Generator
from generator.solvers import Solver

Columns = Mapping[int, Tensor]
Progress = Callable[[Iterator[Tensor]], Iterable[Tensor]]


@dataclass(frozen=True)
class Sampling:
    """What decides a picture beside model, class and noise; the defaults are the released code's.

    Args:
        guidance, solver: see `generator.guidance` and `generator.solvers`.
        temperature: scale of the starting noise.
        last_position: keeps a long run inside the trained positions; see `Generator.turns`.
    """

    guidance: Guidance = field(default_factory=Guidance)
    solver: Solver = field(default_factory=Solver)
    temperature: float = 1.0
    last_position: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"--temperature: found {self.temperature}, expected 0 or more")
        if self.last_position is not None and self.last_position < 0:
            raise UserError(f"--last_position: found {self.last_position}, expected 0 or more")


RELEASED = Sampling()


def numbered(prefix: Tensor) -> Columns:
    """Columns [B, M, C] that stand at the beginning, by their number."""
    return dict(enumerate(prefix.unbind(1)))


@torch.no_grad()
def sample_columns(
    model: Generator,
    labels: Tensor,
    noise: Iterable[Tensor],
    sampling: Sampling,
    given: Columns | None = None,
) -> Iterator[Tensor]:
    """Columns [B, C], one after the other, for as long as there is noise.

    Args:
        model: in evaluation mode.
        labels: [B] in 0 … classes − 1.
        noise: starting noise [B, C] of each column, also of those that are given.
        sampling: where its guidance is 1 throughout, one branch is run.
        given: columns [B, C] in the model's scale that are taken as they are, by their number.

    Raises:
        UserError: no labels, or one that is no class of the model.
    """
    batch = check_labels(model, labels)
    guidance, given = sampling.guidance, given or {}
    branches = [labels]
    if guidance.is_active:
        branches.append(torch.full_like(labels, model.no_class))
    distinct, row = torch.cat(branches).unique(return_inverse=True)
    memory = model.read_classes(distinct).select(row)  # [2B]
    reader = ColumnReader(model, memory, sampling.last_position)
    drawer = Drawer(model.head, sampling.solver)
    hidden = reader.first()  # [2B, D]
    unread: deque[Tensor] = deque(maxlen=reader.reach)
    for column, start in enumerate(noise):
        token = given.get(column)
        if token is None:
            if unread:
                if column > reader.position + len(unread):
                    reader.forget(column - len(unread))
                tokens = torch.stack(tuple(unread), dim=1)  # [B, n, C]
                hidden = reader.read(tokens.repeat(len(branches), 1, 1))
                unread.clear()
            condition, *unconditional = hidden.split(batch)
            token = drawer.draw(
                start * sampling.temperature,
                condition,
                *unconditional,
                guidance=guidance.at(column),
            )
        unread.append(token)
        yield token


def sample(
    model: Generator,
    labels: Tensor,
    noise: Tensor,
    sampling: Sampling,
    given: Columns | None = None,
    progress: Progress = iter,
) -> Tensor:
    """Tokens [B, L, C] from noise [B, L, C]; otherwise as `sample_columns`.

    `progress` is handed the columns while they are drawn, and passes them on.

    Raises:
        UserError: see `sample_columns`; also batches of different size, and given columns that
            lie outside.
    """
    batch, length = check_labels(model, labels), noise.shape[1]
    sizes = {len(noise), *(len(token) for token in (given or {}).values())}
    if sizes != {batch}:
        raise UserError(
            f"batch: found {batch} labels, and noise or given columns of "
            f"{', '.join(map(str, sorted(sizes)))} images, expected the same number"
        )
    if length < 1:
        raise UserError("columns: found none, expected noise for at least one")
    _check_columns(given or (), length)
    columns = sample_columns(model, labels, noise.unbind(1), sampling, given)
    return torch.stack(list(progress(columns)), dim=1)


def redraw(
    model: Generator,
    labels: Tensor,
    tokens: Tensor,
    noise: Tensor,
    replaced: Mapping[int, Tensor | None],
    sampling: Sampling,
) -> Tensor:
    """A picture in which single columns were replaced, and all later ones follow from them.

    Args:
        model, labels, sampling: as the picture was drawn with.
        tokens: [B, L, C] of the picture.
        noise: [B, L, C]; columns that are drawn start from it.
        replaced: by their number, columns [B, C] that take the place of others; None draws the
            column from `noise`, which gives another one where this noise is new.

    Returns:
        [B, L, C]: as `tokens` before the first replaced column; from there on the replaced
        columns, and all others drawn.
    """
    _check_columns(replaced, tokens.shape[1])
    if not replaced:
        return tokens
    given = numbered(tokens[:, : min(replaced)])
    given |= {column: token for column, token in replaced.items() if token is not None}
    return sample(model, labels, noise, sampling, given)


def check_labels(model: Generator, labels: Tensor) -> int:
    """How many labels there are, at least one, all of them classes of the model."""
    if not len(labels):
        raise UserError("class labels: found none, expected at least one")
    if not 0 <= int(labels.min()) <= int(labels.max()) < model.config.classes:
        raise UserError(
            f"class labels: found {int(labels.min())} … {int(labels.max())}, "
            f"expected 0 … {model.config.classes - 1}"
        )
    return len(labels)


def _check_columns(columns: Iterable[int], length: int) -> None:
    for column in columns:
        if not 0 <= column < length:
            raise UserError(f"given columns: found number {column}, expected 0 … {length - 1}")
