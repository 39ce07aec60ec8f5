"""One of two processes, started by test_two_processes.py in place of `torchrun`."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from trained import SILENT, build, noisy

from common import distributed
from common.errors import Preempted

# runs that are the same on one process with the whole batch
RUNS = {
    "plain": {"label_drop_prob": 0.5},
    "accumulated": {"batch_size": 2, "accumulate": 2},
    "runs of two columns": {"subsequence": 2},
    "not finite once": {},
    "recomputed": {"grad_checkpointing": True},
}


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
        sent = {"tensors": [torch.arange(6).view(2, 3).mT], "name": "x"}
        found = distributed.load_on_all(lambda: sent if process.is_main else 1 / 0)
        assert torch.equal(found["tensors"][0], sent["tensors"][0]) and found["name"] == "x"

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
