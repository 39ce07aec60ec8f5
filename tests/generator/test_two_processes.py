"""Two processes with half of the batch each learn what one with the whole batch does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.plots import read_long
from generator.objective import token_losses
from generator.trainer import LAST

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from two_processes import RUNS, inputs, model, run  # noqa: E402

sys.path.pop(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two have left."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    common |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": HERE.parents[1]}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", folder],
            env=os.environ | {k: str(v) for k, v in {**common, "RANK": r, "LOCAL_RANK": r}.items()},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


def test_two_processes_have_the_gradients_of_one(folder):
    whole = model()
    token_losses(whole, *inputs()).mean().backward()
    found = [g for r in range(2) for g in torch.load(folder / f"gradients {r}.pth")]
    for name, parameter in whole.named_parameters():
        for gradients in found:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
    # the halves alone have others: the comparison can fail
    half = model()
    token_losses(half, *inputs(slice(0, None, 2))).mean().backward()
    assert (half.head.token_in.weight.grad - whole.head.token_in.weight.grad).abs().max() > 1e-3


def assert_close(found, expected):
    """As whole tensors, because Adam makes a weight whose gradient is nothing but rounding move as
    far as any other; and without the bias of all class tokens' keys, which changes nothing."""
    for name, value in expected.items():
        if not name.endswith("cross_attention.k.bias"):
            assert (found[name] - value).norm() < 2e-2 * value.norm(), name


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(folder, tmp_path, name):
    """With the posterior's noise, dropped classes, shifts, times and noise of the flow."""
    one = run(name, tmp_path)
    one.run()
    states = [torch.load(folder / f"{name} {rank}.pth") for rank in range(2)]
    before = run(name, tmp_path / "before").model.state_dict()
    with pytest.raises(AssertionError):
        assert_close(before, states[0]["model"])
    for key, trained in {"model": one.model, "model_ema": one.ema.model}.items():
        assert all(torch.equal(v, states[1][key][k]) for k, v in states[0][key].items())
        assert_close(states[0][key], trained.state_dict())
    found, expected = (read_long(f / "metrics.csv") for f in (folder / name, tmp_path))
    assert found.keys() == expected.keys()
    for key, series in expected.items():
        values = pytest.approx(list(series.values()), rel=2e-3, abs=1e-6, nan_ok=True)
        assert list(found[key].values()) == values, key
    assert sum(expected["train/skipped"].values()) == (4 if name == "not finite once" else 0)


def test_one_process_goes_on_where_two_have_left(folder, tmp_path):
    """At a signal that only one of them got."""
    whole = run("plain", tmp_path / "whole")
    whole.run()
    resumed = run("plain", tmp_path / "on", weights=7)
    path = folder / "left" / LAST
    resumed.load(checkpoint.load(path), path)
    assert (resumed.epoch, resumed.epoch_updates) == (1, 1)
    resumed.run()
    found, expected = (run.model.state_dict() for run in (resumed, whole))
    assert_close(found, expected)


def test_one_of_them_writes(folder):
    saved = checkpoint.load(folder / "plain" / LAST)["model"]
    state = torch.load(folder / "plain 0.pth")["model"]
    assert all(torch.equal(saved[k], v) for k, v in state.items())
    assert len(read_long(folder / "plain" / "metrics.csv")["train/loss"]) == 6
