"""One of two processes, started by test_two_processes.py in place of `torchrun`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from trained import SIZES, build, noisy

from common import distributed
from common.signals import Preempted
from generator.model import Generator, GeneratorConfig
from generator.objective import Draws, token_losses
from generator.trainer import LossModule

BATCH, LENGTH, CHANNELS, REPEATS = 4, 5, 6, 2
SILENT = GeneratorConfig(**{**vars(SIZES), "attn_dropout": 0.0, "proj_dropout": 0.0})
# runs that are the same on one process with the whole batch
RUNS = {
    "plain": {"label_drop_prob": 0.5},
    "accumulated": {"batch_size": 2, "accumulate": 2},
    "runs of two columns": {"subsequence": 2},
    "not finite once": {},
    "recomputed": {"grad_checkpointing": True},
}


def model() -> Generator:
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(32, 2, 4, CHANNELS, 5, 3, head_width=16, head_depth=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor, Draws]:
    """Tokens, labels and draws of some rows of the batch."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(BATCH, LENGTH, CHANNELS, generator=generator)
    labels = torch.tensor([0, 1, 1, 4])
    drop = torch.tensor([False, True, False, False])
    t = torch.rand(REPEATS, BATCH, LENGTH, generator=generator)
    noise = torch.randn(REPEATS, BATCH, LENGTH, CHANNELS, generator=generator)
    draws = Draws(2, drop[rows], t[:, rows].flatten(), noise[:, rows].flatten(0, 2))
    return tokens[rows], labels[rows], draws


def once_not_finite(rank: int):
    """Tokens that are not finite on one process, in the third update."""
    calls = 0

    def tokenise(batch, draws):
        nonlocal calls
        calls += 1
        tokens, labels = noisy(batch, draws)
        if calls == 3 and rank == 0:
            tokens[0] = float("nan")
        return tokens, labels

    return tokenise


def run(name: str, folder: Path, process=None, **more):
    """One of `RUNS`; a process takes its share of the batch."""
    settings = {**RUNS[name], **more}
    if name == "not finite once":
        settings["tokenise"] = once_not_finite(process.rank if process else 0)
    if process is not None:
        settings["process"] = process
        settings["batch_size"] = settings.get("batch_size", 4) // process.world
    return build(folder, sizes=SILENT, **settings)


def work(folder: Path) -> None:
    with distributed.launch("cpu") as process:
        half = inputs(slice(process.rank, None, process.world))
        alone = model()
        wrapped = torch.nn.parallel.DistributedDataParallel(LossModule(alone))
        wrapped(*half).mean().backward()
        gradients = [{k: p.grad for k, p in alone.named_parameters()}]
        alone = model()
        token_losses(alone, *half).mean().backward()
        distributed.average_gradients(list(alone.parameters()))
        gradients.append({k: p.grad for k, p in alone.named_parameters()})
        torch.save(gradients, folder / f"gradients {process.rank}.pth")

        for name in RUNS:
            # the processes begin with different weights, which is put right
            trainer = run(name, folder / name, process, weights=process.rank)
            trainer.run()
            state = {"model": trainer.model.state_dict()}
            state["model_ema"] = trainer.ema.model.state_dict()
            torch.save(state, folder / f"{name} {process.rank}.pth")

        # only the second process is asked to leave
        trainer = run("plain", folder / "left", process)
        train_step = trainer.train_step

        def asked(batches, rate):
            if trainer.step == 2 and process.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(batches, rate)

        trainer.train_step = asked
        with suppress(Preempted):
            trainer.run()
            raise AssertionError("the training went on")
        assert trainer.step == 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
