import torch

from common import precision


def test_full_float32_holds_inside_and_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    a = torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with precision.full_float32():
            assert not torch.backends.cudnn.allow_tf32
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32
