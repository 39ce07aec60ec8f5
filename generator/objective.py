"""The training loss of the generator: flow matching of every column under its past.

Shapes: B batch, L columns, C token channels, R = B·L·repeats flow draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generator.model import Generator


@dataclass(frozen=True)
class Draws:
    """All that is random in one training loss, dropout aside.

    Args:
        shift: of all positions, one for the batch.
        drop: [B], true where a sample loses its class.
        t: [R] uniform in [0, 1).
        noise: [R, C] standard normal; rows are the B·L tokens, repeated as a whole.
    """

    shift: int
    drop: Tensor
    t: Tensor
    noise: Tensor

    @classmethod
    def random(
        cls,
        tokens: Tensor,
        generator: torch.Generator,
        shift: int = 0,
        drop_probability: float = 0.1,
        repeats: int = 4,
    ) -> Draws:
        """Draws for tokens [B, L, C] from a generator on their device; the shift, which all
        processes share, is given."""
        batch, length, channels = tokens.shape
        rows = batch * length * repeats
        options = {"generator": generator, "device": tokens.device}
        return cls(
            shift=shift,
            drop=torch.rand(batch, **options) < drop_probability,
            t=torch.rand(rows, **options),
            noise=torch.randn(rows, channels, **options),
        )


def training_loss(model: Generator, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Mean flow-matching loss a column.

    Args:
        model: the generator.
        tokens: [B, L, C] in the model's scale.
        labels: [B].
        draws: see `Draws`.

    Returns:
        [L], whose mean is the loss.
    """
    batch, length, _ = tokens.shape
    labels = torch.where(draws.drop, model.no_class, labels)
    memory = model.read_classes(labels)
    hidden = model.hidden(tokens[:, :-1], memory, draws.shift)  # [B, L, D]
    repeats = len(draws.t) // (batch * length)
    loss = model.head.loss(
        tokens.flatten(0, 1).repeat(repeats, 1),  # [R, C]
        hidden.flatten(0, 1).repeat(repeats, 1),  # [R, D]
        draws.t,
        draws.noise,
    )
    return loss.view(repeats, batch, length).mean(dim=(0, 1))  # [L]
