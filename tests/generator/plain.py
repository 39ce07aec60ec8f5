"""The plain sampler: nothing kept, nothing shared. It defines what sampling gives.

For every column the whole transformer reads all columns so far, and the head computes everything
again at every step of Euler's method. `generator.sampling` gives the same columns to rounding.

Shapes: B batch, L columns, C token channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from generator.model import Generator
from generator.objective import Draws, token_losses


@torch.no_grad()
def plain_columns(
    model: Generator,
    labels: Tensor,
    noise: Tensor,
    scales: Sequence[float],
    steps: int = 100,
    given: Mapping[int, Tensor] | None = None,
    last_position: int | None = None,
) -> Iterator[Tensor]:
    """Columns [B, C], one after the other, from noise [B, L, C].

    Args:
        model: in evaluation mode.
        labels: [B] in 0 … classes − 1.
        noise: starting noise of every column.
        scales: guidance of every column.
        steps: of Euler's method.
        given: columns [B, C] that are not drawn, by their number.
        last_position: see `Generator.rotations`.
    """
    tokens = noise[:, :0]  # [B, i, C]
    nobody = torch.full_like(labels, model.condition.classes)
    for column in range(noise.shape[1]):
        if given and column in given:
            x = given[column]
        else:
            conditional, unconditional = (
                model.hidden(tokens, model.read_condition(names), last_position=last_position)[
                    :, -1
                ]
                for names in (labels, nobody)
            )
            x = noise[:, column]
            for i in range(steps, 0, -1):
                t = torch.full((len(x),), i / steps, device=x.device)
                velocity = model.head(x, t, unconditional)
                velocity = velocity + scales[column] * (model.head(x, t, conditional) - velocity)
                x = x - velocity / steps
        yield x
        tokens = torch.cat([tokens, x[:, None]], dim=1)


def training_loss(model: Generator, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Mean loss of each column, [L]."""
    return token_losses(model, tokens, labels, draws).mean(dim=(0, 1))


def sample_plainly(*arguments: Any, **options: Any) -> Tensor:
    """Tokens [B, L, C]; arguments are those of `plain_columns`."""
    return torch.stack(list(plain_columns(*arguments, **options)), dim=1)
