"""The plain sampler: nothing kept, nothing shared. It defines what sampling gives.

For every column the whole transformer reads all columns so far, and the head computes everything
again at every step of Euler's method. `generator.sampling` gives the same columns to rounding.
"""

import torch
from torch import Tensor

from generator.model import Generator
from generator.objective import Draws, token_losses
from generator.sampling import sample_columns
from generator.transformer import Context


def hidden(model: Generator, tokens: Tensor, context: Context, last: int | None) -> Tensor:
    """`Generator.hidden`, where the condition is shown no position beyond `last`."""

    def bounded(_, inputs):
        x, keys_values, rotation = inputs
        return x, keys_values, rotation[:, torch.arange(x.shape[1]).clamp(max=last)]

    layers = [] if last is None else model.layers
    hooks = [layer.cross_attention.register_forward_pre_hook(bounded) for layer in layers]
    found = model.hidden(tokens, context)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def sample_plainly(
    model: Generator, labels: Tensor, noise: Tensor, scales, steps=100, given=None, last=None
) -> Tensor:
    """Tokens [B, L, C] from noise [B, L, C], guided by `scales` at each column; columns `given`
    by their number are not sampled; `last` is `last_position`."""
    tokens, null = noise[:, :0], torch.full_like(labels, model.condition.classes)
    for column in range(noise.shape[1]):
        x = noise[:, column]
        if column in (given or {}):
            x = given[column]
        else:
            conditional, unconditional = (
                hidden(model, tokens, model.read_condition(names), last)[:, -1]
                for names in (labels, null)
            )
            for i in range(steps, 0, -1):
                t = torch.full((len(x),), i / steps, device=x.device)
                velocity = model.head(x, t, unconditional)
                velocity = velocity + scales[column] * (model.head(x, t, conditional) - velocity)
                x = x - velocity / steps
        tokens = torch.cat([tokens, x[:, None]], dim=1)
    return tokens


def sample(model: Generator, labels: Tensor, noise: Tensor, config, given=None) -> Tensor:
    """Tokens [B, L, C] from noise [B, L, C], as `generator.sampling` makes them."""
    return torch.stack(list(sample_columns(model, labels, noise.unbind(1), config, given)), dim=1)


def training_loss(model: Generator, tokens: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Mean loss of each column, [L]."""
    return token_losses(model, tokens, labels, draws).mean(dim=(0, 1))
