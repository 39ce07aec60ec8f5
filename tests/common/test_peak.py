from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("tf32", [False, True])
def test_rates_are_those_of_a_machine(monkeypatch, tf32):
    monkeypatch.setattr(peak, "SIDES", (64, 128))
    monkeypatch.setattr(peak, "LARGE", 2**22)
    monkeypatch.setattr(peak, "PATIENCE", 0.01)
    before = torch.get_float32_matmul_precision()
    rate = peak.matmul_rate(CPU, torch.float32, tf32)
    assert math.isfinite(rate) and rate > 1e7
    assert torch.get_float32_matmul_precision() == before
    bandwidth = peak.memory_bandwidth(CPU)
    assert math.isfinite(bandwidth) and bandwidth > 1e7


def test_no_larger_product_is_tried_than_patience_allows(monkeypatch):
    monkeypatch.setattr(peak, "SIDES", (64, 10**9))  # the second one fits into no memory
    monkeypatch.setattr(peak, "PATIENCE", 1e-9)
    assert peak.matmul_rate(CPU, torch.float32) > 0


def test_peak_memory_is_in_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not say how much memory a process had")
    found = peak.peak_memory(CPU)
    (kib,) = (line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line)
    assert found == pytest.approx(int(kib) * 1024, rel=0.05)


def counted(call) -> peak.Work:
    with peak.counted() as work:
        call()
    return work


def test_products_are_counted_exactly():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    assert counted(lambda: a @ b) == peak.Work(2 * 3 * 5 * 7, 0)
    both = counted(lambda: torch.autograd.grad(a @ b, a, torch.ones(3, 7)))
    assert both.flops == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_count_backward_by_what_is_asked_of_it(stride):
    """The gradient of the weight and that of the input cost as much as the forward pass each."""
    conv = nn.Conv2d(3, 8, 3, stride, padding=1, bias=False)
    images = torch.randn(2, 3, 16, 16)
    once = 2 * 2 * 8 * 3 * 9 * (16 // stride) ** 2
    assert counted(lambda: conv(images)).flops == once
    assert counted(lambda: conv(images).sum().backward()).flops == 2 * once
    images.requires_grad_()
    assert counted(lambda: conv(images).sum().backward()).flops == 3 * once


def test_attention_counts_the_same_on_every_device():
    q = torch.randn(2, 4, 6, 16, requires_grad=True)
    once = 2 * (2 * 2 * 4 * 6 * 6 * 16)  # scores, then values
    work = counted(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert work.flops == 3 * once  # other kernels compute the scores again on the way back


def test_compiled_modules_are_counted_as_they_are_written():
    layer = nn.Linear(4, 4, bias=False)
    layer.compile(backend="inductor")
    assert counted(lambda: layer(torch.ones(2, 4))).flops == 2 * 2 * 4 * 4


def test_traffic_is_what_is_read_and_written():
    a, b = torch.ones(10, 10), torch.ones(10, 10)
    assert counted(lambda: a + b).traffic == 3 * 400
    assert counted(lambda: a.add_(b)).traffic == 3 * 400
    assert counted(lambda: torch._foreach_lerp_([a, a], [b, b], 0.5)).traffic == 6 * 400
    one = torch.ones(1).expand(10, 10)
    assert counted(lambda: a + one).traffic == 400 + 4 + 400
    assert counted(lambda: (a.view(100), a.T, a.detach(), torch.empty(9))).traffic == 0
    assert counted(lambda: a.to(torch.bfloat16)).traffic == 400 + 200
