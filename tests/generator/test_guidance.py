from __future__ import annotations

import pytest
import torch

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
