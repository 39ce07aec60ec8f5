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


def test_the_copy_is_frozen_and_its_buffers_are_copied():
    net = model().train()
    ema = EMA(net, 0.5)
    nn.ModuleList([net, ema]).train()
    assert net.training and not any(m.training for m in ema.model.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert list(ema.model.state_dict()) == list(net.state_dict())
    net(torch.randn(8, 3))
    ema.update(net)
    assert torch.equal(ema.model[1].running_mean, net[1].running_mean)  # copied, not averaged
