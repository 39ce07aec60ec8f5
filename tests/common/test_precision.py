from __future__ import annotations

import pytest
import torch

from common import precision


@pytest.mark.parametrize(
    ("wanted", "device_has_it", "used"),
    [
        ("fp32", True, False),
        ("bf16", False, True),
        ("auto", True, True),
        ("auto", False, False),
    ],
)
def test_which_precision_is_used(monkeypatch, wanted, device_has_it, used):
    monkeypatch.setattr(precision, "has_bf16", lambda device: device_has_it)
    assert precision.uses_bf16(wanted, torch.device("cpu")) == used


def test_full_float32_holds_inside_and_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    a = torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with precision.full_float32():
            assert not torch.backends.cudnn.allow_tf32
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32
