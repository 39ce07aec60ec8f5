from __future__ import annotations

import pytest

from tokenizer.schedule import Schedule


@pytest.mark.parametrize(
    ("step", "multiplier"),
    [
        (0, 0.1),
        (1, 0.2),
        (9, 1.0),
        (10, 1.1),
        (14, 1.1),
        (15, 0.55),
        (19, 0.55),
        (20, 0.275),
        (25, 0.2),
        (10**6, 0.2),
    ],
)
def test_warm_up_then_steps_down_to_the_least(step, multiplier):
    schedule = Schedule(10, lr_start=0.1, lr_max=1.1, lr_min=0.2, interval=5, decay=0.5)
    assert schedule.multiplier(step) == pytest.approx(multiplier)


def test_without_settings_the_rate_is_constant():
    assert {Schedule().multiplier(step) for step in (0, 1, 10**6)} == {1.0}
