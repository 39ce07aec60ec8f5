"""From class labels to pictures: generator and tokenizer together.

Shapes: B batch, L columns, C token channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from common import seeding
from generator.model import Generator
from generator.sampling import Guidance, sample


class Decoder(Protocol):
    """What is needed of a tokenizer: tokens in the model's scale [B, L, C] → [B, 3, H, W]."""

    def decode_tokens(self, tokens: Tensor) -> Tensor: ...


def image_noise(seed: int, numbers: Sequence[int], columns: int, channels: int) -> Tensor:
    """The starting noise of images `numbers` of a seed, [B, L, C].

    Each image has its own stream, laid out by column: it is the same in every batch, on every
    process, and a longer image begins with the noise of a shorter one.
    """
    return torch.stack(
        [seeding.normal(seed, "image", k, shape=(columns, channels)) for k in numbers]
    )


@torch.inference_mode()
def generate(
    model: Generator,
    decoder: Decoder,
    labels: Sequence[int],
    numbers: Sequence[int],
    columns: int,
    guidance: Guidance,
    steps: int = 100,
    temperature: float = 1.0,
    seed: int = 0,
    prefix: Tensor | None = None,
    last_position: int | None = None,
) -> Tensor:
    """Images number `numbers` of classes `labels`.

    Args:
        model, decoder: on one device.
        labels, numbers: of the B images.
        columns: L, any number ≥ 2; the images are L column widths wide.
        guidance, steps: see `generator.sampling`.
        temperature: scale of the starting noise.
        seed: of all noise.
        prefix: [B, M, C] columns that are given, in the model's scale.
        last_position: keeps a long run inside the trained positions; see `Generator.turns`.

    Returns:
        [B, 3, H, W] in about [-1, 1].
    """
    device = next(model.parameters()).device
    noise = image_noise(seed, numbers, columns, model.config.channels).to(device) * temperature
    classes = torch.tensor(labels, device=device)
    tokens = sample(model, classes, noise, guidance, steps, prefix, last_position)
    return decoder.decode_tokens(tokens)
