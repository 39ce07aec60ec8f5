"""Sampling of columns, one after the other; with a window, each costs the same in any image.

Shapes: B batch, L columns, C token channels, D width.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.config import setting
from common.errors import UserError
from generator.kv_cache import KVCache
from generator.model import Generator
from generator.solvers import METHODS, Solver

Columns = Mapping[int, Tensor]
COLUMNS = 16  # of an image, where nothing says it

_set = partial(setting, group="sampling")


@dataclass(frozen=True)
class SampleConfig:
    """What decides an image beside weights, condition and number, with the released defaults."""

    columns: int | None = _set(
        None, "columns of an image (default: as trained)", min=2, flag="token_num", alias="num_iter"
    )
    cfg: float = _set(1.0, "guidance scale; 1: no guidance")
    cfg_schedule: str = _set(
        "linear", "guidance scale over columns", choices=("linear", "constant")
    )
    cfg_ramp: int | None = _set(None, "columns in which it grows (default: all)", min=1)
    solver: str = _set("euler", "ODE solver; euler: as released", choices=tuple(METHODS))
    steps: int = _set(100, "solver steps of a column", min=1, flag="num_sampling_steps")
    temperature: float = _set(1.0, "scale of the starting noise", min=0)
    last_position: int | None = _set(None, "largest position in queries to the condition", min=0)
    seed: int = _set(0, "random seed of noise and labels")
    decode_columns: int = _set(256, "columns decoded at once; wider images in tiles", min=2)
    decode_overlap: int = _set(16, "columns that two neighbouring tiles share", min=0)

    def __post_init__(self) -> None:
        if 2 * self.decode_overlap > self.decode_columns:
            half = self.decode_columns // 2
            raise UserError(f"decode_overlap: found {self.decode_overlap}, expected at most {half}")

    def scale_at(self, column: int) -> float:
        """The guidance scale at a column, 0 first; 1 is the conditional branch alone."""
        if self.cfg_schedule == "constant":
            return self.cfg
        ramp = self.cfg_ramp or self.columns or COLUMNS
        return 1.0 + (self.cfg - 1.0) * min((column + 1) / ramp, 1.0)


@torch.no_grad()
def sample_columns(
    model: Generator,
    labels: Tensor,
    noise: Iterable[Tensor],
    config: SampleConfig,
    given: Columns | None = None,
) -> Iterator[Tensor]:
    """Columns [B, C] of conditions `labels` [B], one after the other, for as long as there is
    noise [B, C], also for those `given` by their number ([B, C], or [1, C] for all images)."""
    model.condition.check(labels)
    given, count = given or {}, len(labels)
    branches = [labels] if config.cfg == 1.0 else [labels, model.condition.null(labels)]
    distinct, row = torch.cat(branches).unique(return_inverse=True, dim=0)
    cache = KVCache(model, model.read_condition(distinct).select(row), config.last_position)
    solver = Solver(config.solver, config.steps)
    times = model.head.embed_times(solver)
    hidden = cache.first()  # [2B, D]
    unread: deque[Tensor] = deque(maxlen=model.layout.reach(len(model.layers)))
    for column, start in enumerate(noise):
        if column in given:
            token = given[column].expand(count, -1)
        else:
            if unread:
                if column > cache.position + len(unread):
                    cache.forget(column - len(unread))
                tokens = torch.stack(tuple(unread), dim=1)  # [B, n, C]
                hidden = cache.read(tokens.repeat(len(branches), 1, 1))
                unread.clear()
            condition, *other = hidden.split(count)
            unconditional, scale = other[0] if other else None, config.scale_at(column)
            start = start * config.temperature
            token = model.head.sample(start, condition, unconditional, scale, solver, times)
        unread.append(token)
        yield token
