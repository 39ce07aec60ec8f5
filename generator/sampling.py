"""Sampling of columns, one after the other; with a window, each costs the same in any image.

Shapes: B batch, L columns, C token channels, D width.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.config import setting
from common.errors import UserError
from generator.guidance import SCHEDULES, Guidance
from generator.kv_cache import KVCache
from generator.model import Generator
from generator.solvers import METHODS, Solver

Columns = Mapping[int, Tensor]
Progress = Callable[[Iterator[Tensor]], Iterable[Tensor]]
COLUMNS = 16  # of an image, where nothing says it


_set = partial(setting, group="sampling")


@dataclass(frozen=True)
class SampleConfig:
    """What decides an image beside weights, condition and number, with the released defaults."""

    columns: int | None = _set(
        None,
        f"columns of an image (default: as trained, or {COLUMNS})",
        min=2,
        flag="token_num",
        alias="num_iter")
    cfg: float = _set(1.0, "guidance scale; 1: no guidance")
    cfg_schedule: str = _set("linear", "guidance scale over the columns", choices=SCHEDULES)
    cfg_ramp: int | None = _set(None, "columns in which it grows (default: all)", min=1)
    solver: str = _set("euler", "ODE solver; euler: as released", choices=tuple(METHODS))
    steps: int = _set(100, "solver steps of a column", min=1, flag="num_sampling_steps")
    time_power: float | None = _set(
        None, "solver times are (i/steps)^power (default: 1 for euler, else 1.5)", above=0
    )
    temperature: float = _set(1.0, "scale of the starting noise", min=0)
    last_position: int | None = _set(
        None,
        "position at which wide images' queries to the condition stay, such as the training "
        "images' columns (default: none, as released)",
        min=0)
    seed: int = _set(0, "random seed of noise and labels")
    decode_columns: int = _set(256, "columns decoded at once; wider images in tiles", min=2)
    decode_overlap: int = _set(16, "columns that two neighbouring tiles share", min=0)

    def __post_init__(self) -> None:
        if 2 * self.decode_overlap > self.decode_columns:
            half = self.decode_columns // 2
            raise UserError(f"decode_overlap: found {self.decode_overlap}, expected at most {half}")

    def guidance(self, columns: int | None = None) -> Guidance:
        """Of images of so many columns, where `columns` does not say it."""
        ramp = self.cfg_ramp or self.columns or columns or COLUMNS
        return Guidance(self.cfg, self.cfg_schedule, ramp)


def numbered(prefix: Tensor) -> Columns:
    """Columns [B, M, C] that stand at the beginning, by their number."""
    return dict(enumerate(prefix.unbind(1)))


@torch.no_grad()
def sample_columns(
    model: Generator,
    labels: Tensor,
    noise: Iterable[Tensor],
    config: SampleConfig,
    given: Columns | None = None,
    guidance: Guidance | None = None,
) -> Iterator[Tensor]:
    """Columns [B, C] of conditions `labels` [B], one after the other, for as long as there is
    noise: [B, C] for each column, also for those that are given.

    Columns `given` by their number, [B, C] in the model's scale, are taken as they are. `guidance`
    is that of `config`, if not given.
    """
    model.condition.check(labels)
    guidance, given = guidance or config.guidance(), given or {}
    branches = [labels]
    if guidance.is_active:
        branches.append(model.condition.null(labels))
    distinct, row = torch.cat(branches).unique(return_inverse=True, dim=0)
    cache = KVCache(model, model.read_condition(distinct).select(row), config.last_position)
    solver = Solver(config.solver, config.steps, config.time_power)
    times = model.head.embed_times(solver)
    hidden = cache.first()  # [2B, D]
    unread: deque[Tensor] = deque(maxlen=model.layout.reach(len(model.layers)))
    for column, start in enumerate(noise):
        token = given.get(column)
        if token is None:
            if unread:
                if column > cache.position + len(unread):
                    cache.forget(column - len(unread))
                tokens = torch.stack(tuple(unread), dim=1)  # [B, n, C]
                hidden = cache.read(tokens.repeat(len(branches), 1, 1))
                unread.clear()
            start, scale = start * config.temperature, guidance.at(column)
            condition, *other = hidden.split(len(labels))
            unconditional = other[0] if other else None
            token = model.head.sample(start, condition, unconditional, scale, solver, times)
        unread.append(token)
        yield token


def sample(
    model: Generator,
    labels: Tensor,
    noise: Tensor,
    config: SampleConfig,
    given: Columns | None = None,
    progress: Progress = iter,
) -> Tensor:
    """Tokens [B, L, C] from noise [B, L, C]; otherwise as `sample_columns`.

    `progress` is handed the columns as they come, and passes them on.
    """
    guidance = config.guidance(noise.shape[1])
    columns = sample_columns(model, labels, noise.unbind(1), config, given, guidance)
    return torch.stack(list(progress(columns)), dim=1)
