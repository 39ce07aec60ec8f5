"""The training loss of the generator: flow matching of every column under its past.

Shapes: B batch, L columns, C token channels, R = B·L·repeats flow draws.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.seeding import BatchDraws
from generator.model import Generator


@dataclass(frozen=True)
class Draws:
    """All that is random in one training loss, dropout aside."""

    shift: int  # of all positions, one for the batch
    drop: Tensor  # [B], true where a sample loses its condition
    t: Tensor  # [R] uniform in [0, 1)
    noise: Tensor  # [R, C] standard normal; rows are the B·L tokens, repeated as a whole

    @classmethod
    def random(
        cls, tokens: Tensor, draws: BatchDraws, shift: int, drop_probability: float, repeats: int
    ) -> "Draws":
        """For this process's tokens [B, L, C]: rows of what is drawn for the whole batch."""
        batch, length, channels = tokens.shape
        drop = draws.uniform(batch) < drop_probability
        t = [draws.uniform(batch, length) for _ in range(repeats)]
        noise = [draws.normal(batch, length, channels) for _ in range(repeats)]
        return cls(shift, drop, torch.cat(t).flatten(), torch.cat(noise).flatten(0, 1))


def token_losses(model: Generator, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Flow-matching loss of each draw of each token, [repeats, B, L] in float32, of tokens
    [B, L, C] in the model's scale and labels [B]."""
    batch, length, _ = tokens.shape
    context = model.read_condition(model.condition.drop(labels, draws.drop))
    hidden = model.hidden(tokens[:, :-1], context, draws.shift)  # [B, L, D]
    repeats = len(draws.t) // (batch * length)
    x0 = tokens.flatten(0, 1).repeat(repeats, 1)  # [R, C]
    loss = model.head.loss(x0, hidden.flatten(0, 1).repeat(repeats, 1), draws.t, draws.noise)
    return loss.view(repeats, batch, length)
