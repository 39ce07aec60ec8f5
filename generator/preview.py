"""Pictures that a generator draws while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from common import images
from generator.decoding import Decoder
from generator.guidance import Guidance
from generator.model import Generator
from generator.pipeline import generate
from generator.sampling import Sampling
from generator.solvers import Solver


@dataclass(frozen=True)
class Preview:
    """Pictures of all classes in turn, the same noise every time.

    Args:
        decoder: the tokenizer, on the generator's device.
        columns: L, of each picture.
        count: how many.
        steps: of the solver, for each column.
        temperature: scale of the starting noise.
        cfg: guidance at the last column, to which it grows from 1; 1 is none.
        seed: of the noise.
    """

    decoder: Decoder
    columns: int
    count: int = 16
    steps: int = 100
    temperature: float = 1.0
    cfg: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.sampling  # noqa: B018 - settings that make no sense are refused before training

    @property
    def sampling(self) -> Sampling:
        guidance = Guidance(self.cfg, ramp=self.columns)
        return Sampling(guidance, Solver(steps=self.steps), self.temperature)

    def __call__(self, model: Generator, path: Path) -> None:
        """Draw into one file; `model` is in evaluation mode."""
        numbers = range(self.count)
        pictures = generate(
            model,
            self.decoder,
            [k % model.config.classes for k in numbers],
            numbers,
            self.columns,
            self.sampling,
            self.seed,
        )
        images.save_grid(path, torch.stack(list(pictures)), columns=round(self.count**0.5))
