from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import checkpoint
from common.errors import UserError
from common.plots import read_long
from generator.model import Generator
from generator.training import LAST
from generator.updates import PATIENCE, parameter_groups

from .trained import SIZES, build, noisy


def poisoned(updates, value=float("nan"), seen=None):
    """Tokens that are not finite in some updates (1 first)."""
    calls = 0

    def tokenise(batch, draws):
        nonlocal calls
        calls += 1
        if seen is not None:
            seen.append(calls)
        tokens, labels = noisy(batch, draws)
        if calls in updates:
            tokens[1, 2, 0] = value
        return tokens, labels

    return tokenise


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_update_that_is_not_finite_is_left_out(tmp_path, value):
    """To the bit; 1e30 is finite, but its square is not."""
    trainer = build(tmp_path, tokenise=poisoned({3}, value), warmup_epochs=0)
    updates = trainer.learner.updates
    states = []
    make = updates.make

    def watched(loss, rate):
        norm = make(loss, rate)
        optimizer = copy.deepcopy(updates.optimizer.state_dict()["state"])
        states.append((copy.deepcopy(updates.model.state_dict()), optimizer))
        return norm

    updates.make = watched
    trainer.run()
    for name, weights in states[2][0].items():
        assert torch.equal(weights, states[1][0][name]) and weights.isfinite().all()
    assert any(not torch.equal(v, states[2][0][k]) for k, v in states[3][0].items())
    for index, moments in states[2][1].items():
        for key, moment in moments.items():
            assert torch.equal(moment, states[1][1][index][key])
    assert trainer.step == 6 and int(updates.skipped) == 1
    skipped = read_long(tmp_path / "metrics.csv")["train/skipped"]
    assert list(skipped.values()) == [0, 0, 1, 1, 1, 1]
    assert all(p.isfinite().all() for p in updates.ema.parameters())


def test_too_many_in_a_row_end_the_run(tmp_path):
    """The last checkpoint is the one before; nothing moves until the training looks."""
    seen = []
    bad = range(5, 5 + PATIENCE)
    trainer = build(tmp_path, tokenise=poisoned(bad, seen=seen), epochs=99, log_freq=7,
                    save_steps=3, save_last_freq=99)  # fmt: skip
    with pytest.raises(UserError, match="not finite in 10 updates in a row, not later than update"):
        trainer.run()
    assert len(seen) in (14, 15)  # the next time that a checkpoint or an entry of the log is due
    state = checkpoint.load(tmp_path / LAST)
    assert state["step"] == 12 and state["skipped"] == state["skipped_in_a_row"] == 8
    assert all(value.isfinite().all() for value in state["model"].values())


def test_fewer_in_a_row_do_not(tmp_path):
    bad = {*range(2, 2 + PATIENCE - 1), *range(13, 13 + PATIENCE - 1)}
    trainer = build(tmp_path, tokenise=poisoned(bad), epochs=20, log_freq=40)
    trainer.run()
    assert int(trainer.learner.updates.skipped) == 2 * (PATIENCE - 1)


def test_nothing_moves_after_the_limit(tmp_path):
    trainer = build(tmp_path, tokenise=poisoned(range(2, 2 + PATIENCE)), epochs=99, log_freq=99)
    updates = trainer.learner.updates
    batches = list(trainer.loader)
    for step in range(20):
        trainer.learner.update(batches[:1], step, 1e-2)
        if step == 0:
            before = copy.deepcopy(updates.model.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in updates.model.state_dict().items())
    assert int(updates.in_a_row) == PATIENCE


def test_counts_survive_a_resume(tmp_path):
    trainer = build(tmp_path, tokenise=poisoned({1, 2, 3}), max_steps=3)
    trainer.run()
    state = checkpoint.load(tmp_path / LAST)
    resumed = build(tmp_path)
    resumed.load(state, tmp_path)
    assert int(resumed.learner.updates.skipped) == int(resumed.learner.updates.in_a_row) == 3


class Waiting(TorchDispatchMode):
    """Collects what would make the program wait for a GPU."""

    READS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in self.READS or any(i.dtype is torch.bool for i in indices if i is not None):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [{}, {"subsequence": 2}, {"train_columns": "0,2-3"}])
def test_an_update_never_waits_for_the_device(tmp_path, given):
    trainer = build(tmp_path, **given)
    batches = list(trainer.loader)
    trainer.learner.update(batches[:1], 0, 1e-2)  # counters are read once, at the start
    with Waiting() as waiting:
        trainer.learner.update(batches[1:], 1, 1e-2)
    assert waiting.found == []
    with Waiting() as waiting:
        trainer.learner.updates.check(1)
    assert waiting.found


def test_clipping(tmp_path):
    """The norm is told as it was; the largest one allowed is what the weights see."""
    norms = {}
    for clip in (0.0, 1e-3):
        trainer = build(tmp_path, grad_clip=clip)
        updates, seen = trainer.learner.updates, []
        step = updates.optimizer.step

        def watched(step=step, seen=seen, updates=updates):
            squares = [p.grad.square().sum() for p in updates.model.parameters()]
            seen.append(torch.stack(squares).sum().sqrt().item())
            step()

        updates.optimizer.step = watched
        _, norm = trainer.learner.update(list(trainer.loader)[:1], 0, 1e-2)
        norms[clip] = (norm.item(), *seen)
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-4) and norms[0.0][0] > 0.1
    assert norms[1e-3] == pytest.approx((norms[0.0][0], 1e-3), rel=1e-3)


def test_weights_that_decay():
    model = Generator(SIZES)
    decayed, free = parameter_groups(model, 0.02)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.02 and free["weight_decay"] == 0
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    found = {names[id(p)] for p in decayed["params"]}
    assert "layers.0.attention.qkv.weight" in found and "class_embedding.weight" in found
    assert not any(n.startswith("head.") or n.endswith("bias") or "norm" in n for n in found)
