"""A run small enough to be made many times in a test."""

import dataclasses
from pathlib import Path

import torch

from common.data.sampler import Draw
from common.distributed import Process
from generator.checkpoints import read
from generator.config import GeneratorConfig, TrainConfig
from generator.data import training_batches
from generator.model import Generator
from generator.trainer import LAST, Trainer

ALONE = Process(0, 0, 1, torch.device("cpu"))
SIZES = GeneratorConfig(16, 2, 2, 3, 4, 3, head_width=8, head_depth=1)
SILENT = dataclasses.replace(SIZES, attn_dropout=0.0, proj_dropout=0.0)
TIMES = {"epochs": 3, "warmup_epochs": 1, "log_freq": 1, "save_freq": 0}
CONFIG = TrainConfig(lr=1e-2, ema_rate=0.9, shift_num=4, batch_size=4, **TIMES)


class Tokens:
    """Ten images of five columns of three channels."""

    class_names = ("a", "b", "c", "d")

    def __init__(self, count: int = 10) -> None:
        self.tokens = torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, draw: Draw | int):
        index = draw if isinstance(draw, int) else draw.index
        return self.tokens[index], index % 4


def network(sizes: GeneratorConfig = SIZES, seed: int = 0) -> Generator:
    """No weight is zero, as those of a fresh head are, so that everything has a gradient."""
    torch.manual_seed(seed)
    model = Generator(sizes)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def noisy(batch, draws):
    """As a posterior would: fresh noise on the tokens of each image."""
    tokens, labels = batch
    return tokens + 0.5 * draws.normal(*tokens.shape), labels


def build(folder, process=ALONE, dataset=None, tokenise=noisy, sizes=SIZES, weights=0, workers=0,
          held_out=None, preview=None, **settings) -> Trainer:  # fmt: skip
    """A run with other settings than `CONFIG`; `weights` seeds the first weights."""
    config = dataclasses.replace(CONFIG, **settings)
    loader = training_batches(dataset or Tokens(), config, process, workers)
    model, header = network(sizes, weights), {"tokenizer": "abc"}
    given = (model, config, process, loader, tokenise, 5, header, folder, folder)
    return Trainer(*given, held_out=held_out, preview=preview)


def resume(folder: Path, name: str = LAST, **given) -> Trainer:
    """Another beginning, which the checkpoint must replace altogether."""
    trainer = build(folder, weights=5, **given)
    trainer.load(read(folder / name, "cpu"), folder / name)
    return trainer


def assert_same_state(a: Trainer, b: Trainer) -> None:
    """Weights, average, moments and place, to the bit."""
    for found, expected in [
        (a.model.state_dict(), b.model.state_dict()),
        (a.ema.state_dict(), b.ema.state_dict()),
        *zip(*(t.optimizer.state_dict()["state"].values() for t in (a, b)), strict=True),
    ]:
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (a.epoch, a.epoch_updates, a.step) == (b.epoch, b.epoch_updates, b.step)
