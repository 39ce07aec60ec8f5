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
