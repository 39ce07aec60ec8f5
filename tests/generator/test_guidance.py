from __future__ import annotations

import math

import pytest
import torch

from common.errors import UserError
from generator.guidance import Guidance, guided


def test_both_branches_start_from_the_same_token():
    x, (conditional, unconditional) = torch.randn(3, 4), torch.randn(2, 3, 4)
    asked = []

    def both(x, t):
        asked.append((x, t))
        return torch.cat([conditional, unconditional])

    assert torch.equal(guided(both, 1.0)(x, 0.3), conditional)
    assert torch.equal(guided(both, 0.0)(x, 0.3), unconditional)
    expected = unconditional + 3.5 * (conditional - unconditional)
    torch.testing.assert_close(guided(both, 3.5)(x, 0.3), expected)
    for two, t in asked:
        assert torch.equal(two, torch.cat([x, x])) and t == 0.3


@pytest.mark.parametrize(
    ("guidance", "scales"),
    [
        (Guidance(5.0, "linear", 4), [2.0, 3.0, 4.0, 5.0, 5.0]),
        (Guidance(5.0, "constant", 4), [5.0] * 5),
        (Guidance(5.0, "none", 4), [1.0] * 5),
        (Guidance(1.0, "linear", 4), [1.0] * 5),
    ],
    ids=str,
)
def test_guidance_by_column(guidance, scales):
    assert [guidance.at(i) for i in range(5)] == pytest.approx(scales)
    assert guidance.is_active == (scales[-1] != 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((2.0, "cosine"), "--cfg_schedule: found 'cosine', expected one of linear, constant, none"),
        ((math.inf,), "--cfg: found inf, expected a finite number"),
        ((2.0, "linear", 0), "--cfg_ramp: found 0, expected at least one column"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        Guidance(*settings)
