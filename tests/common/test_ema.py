from __future__ import annotations

import pytest
import torch
from torch import nn

from common.ema import EMA


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def move(net, step):
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.full_like(p, float(step)))


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_recurrence(warmup):
    net, limit = model(), 0.6
    move(net, 0)
    ema = EMA(net, limit, warmup)
    expected = 0.0
    for n in range(1, 31):
        move(net, n)
        ema.update(net)
        decay = min(limit, (1 + n) / (10 + n)) if warmup else limit
        expected = decay * expected + (1 - decay) * n
        for p in ema.model.parameters():
            torch.testing.assert_close(p, torch.full_like(p, expected))
    assert ema.updates.item() == 30


def test_buffers_are_copied_not_averaged():
    net = model()
    ema = EMA(net, 0.9)
    net(torch.randn(8, 3))
    ema.update(net)
    assert torch.equal(ema.model[1].running_mean, net[1].running_mean)
    assert ema.model[1].num_batches_tracked.item() == 1


def test_the_copy_is_frozen_and_stays_in_evaluation_mode():
    net = model().train()
    ema = EMA(net, 0.9)
    parent = nn.ModuleList([net, ema]).train()
    assert parent[0].training and not any(m.training for m in ema.model.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_a_resumed_average_equals_an_unbroken_one():
    net = model()
    unbroken = EMA(net, 0.99, warmup=True)
    for n in range(5):
        move(net, n)
        unbroken.update(net)
    resumed = EMA(model(), 0.99, warmup=True)
    resumed.load_state_dict(unbroken.state_dict())
    move(net, 9)
    unbroken.update(net)
    resumed.update(net)
    for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Compiled(nn.Module):
    """Names its parameters as `torch.compile` does, without its seconds of start."""

    def __init__(self, net):
        super().__init__()
        self._orig_mod = net


@pytest.mark.parametrize(
    "wrap", [Compiled, pytest.param(torch.compile, marks=pytest.mark.long)], ids=["alike", "real"]
)
def test_compiled_models_keep_the_plain_names(wrap):
    net = model()
    compiled = wrap(net)
    assert "_orig_mod" in next(iter(compiled.state_dict()))
    ema = EMA(compiled, 0.5)
    assert list(ema.model.state_dict()) == list(net.state_dict())
    move(net, 7)
    ema.update(compiled)
    ema.update(net)
    assert ema.updates.item() == 2
