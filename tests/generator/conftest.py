"""A generator small enough for tests, with weights that make everything matter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from generator.config import GeneratorConfig
from generator.model import Generator

SIZES = GeneratorConfig(32, 2, 4, 6, 5, context_tokens=3, window=3, head_width=16, head_depth=2)


@pytest.fixture
def build() -> Callable[..., Generator]:
    def make(**changes: int) -> Generator:
        """In evaluation mode; no weight is zero, as some are at the start of a training."""
        torch.manual_seed(0)
        model = Generator(replace(SIZES, **changes)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        condition = model.condition
        for part in (condition.embedding.weight, condition.unconditional, model.context_positions):
            nn.init.normal_(part)
        return model

    return make


@pytest.fixture
def model(build) -> Generator:
    return build()
