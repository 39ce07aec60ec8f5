from __future__ import annotations

import math

import pytest

from common.errors import UserError
from generator.schedule import Schedule


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0.0, 0.0), (0.5, 0.05), (1.5, 0.15), (2.0, 0.2), (9.0, 0.2), (99.0, 0.2)]
)
def test_warm_up_by_fractional_epoch_then_constant(epoch, rate):
    assert Schedule(0.2, 10, warmup_epochs=2).rate(epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (1.0, 0.1),
        (2.0, 0.2),
        (4.0, 0.02 + 0.18 * 0.5 * (1 + math.cos(math.pi / 4))),
        (6.0, 0.11),
        (10.0, 0.02),
        (12.0, 0.02),
    ],
)
def test_cosine(epoch, rate):
    schedule = Schedule(0.2, 10, warmup_epochs=2, min_lr=0.02, kind="cosine")
    assert schedule.rate(epoch) == pytest.approx(rate)


def test_no_warm_up_starts_at_the_full_rate():
    assert Schedule(0.2, 10).rate(0.0) == 0.2


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="--lr_schedule: found 'step', expected constant or"):
        Schedule(0.2, 10, kind="step")
