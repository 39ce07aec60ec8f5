"""Two processes with half of the batch each learn what one with the whole batch does.

The processes run this file as a script, as `torchrun` would run a training.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from common import distributed
from generator.model import Generator, GeneratorConfig
from generator.objective import Draws, training_loss
from generator.training import LossModule

BATCH, LENGTH, CHANNELS, REPEATS = 4, 5, 6, 2


def build() -> Generator:
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
    draws = Draws.random(tokens, generator, shift=2, drop_probability=0.5, repeats=REPEATS)
    # rows of the draws: repeat, picture, column
    t = draws.t.view(REPEATS, BATCH, LENGTH)[:, rows].flatten()
    noise = draws.noise.view(REPEATS, BATCH, LENGTH, CHANNELS)[:, rows].flatten(0, 2)
    return tokens[rows], labels[rows], Draws(2, draws.drop[rows], t, noise)


def work(folder: Path) -> None:
    """One of the two: gradients as training computes them, and averaged by hand."""
    with distributed.launch("cpu") as process:
        half = inputs(slice(process.rank, None, process.world))
        model = build()
        wrapped = torch.nn.parallel.DistributedDataParallel(LossModule(model))
        wrapped(*half).mean().backward()
        synchronised = {k: p.grad for k, p in model.named_parameters()}
        model = build()
        training_loss(model, *half).mean().backward()
        distributed.average_gradients(list(model.parameters()))
        averaged = {k: p.grad for k, p in model.named_parameters()}
        torch.save([synchronised, averaged], folder / f"{process.rank}.pth")


def test_two_processes_have_the_gradients_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    common |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": root}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | {k: str(v) for k, v in {**common, "RANK": r, "LOCAL_RANK": r}.items()},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()

    model = build()
    training_loss(model, *inputs()).mean().backward()
    found = [gradients for r in range(2) for gradients in torch.load(tmp_path / f"{r}.pth")]
    for name, parameter in model.named_parameters():
        for gradients in found:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
    # the halves alone have others: the comparison can fail
    half = build()
    training_loss(half, *inputs(slice(0, None, 2))).mean().backward()
    assert (half.head.token_in.weight.grad - model.head.token_in.weight.grad).abs().max() > 1e-3


if __name__ == "__main__":
    work(Path(sys.argv[1]))
