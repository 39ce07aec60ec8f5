from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generator import cost, drawing
from generator.cost import Work, column_work
from generator.drawing import Drawer
from generator.kv_cache import ColumnReader
from generator.solvers import Solver


def multiply_adds(forward):
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("method", ["euler", "heun"])
@torch.no_grad()
def test_the_parts_are_what_the_engine_multiplies(build, method):
    """Counted while a column is drawn and read; attention's own products are left out."""
    model, rows = build(head_depth=3), 4
    solver = Solver(method, 5)
    work = column_work(model, solver, rows)
    drawer = Drawer(model.head, solver)
    noise, condition = torch.randn(rows, 6), torch.randn(rows, 32)
    found = multiply_adds(lambda: drawer.draw(noise, condition))
    expected = sum(w.weights * w.rows * w.times for w in (work["modulations"], work["steps"]))
    condition_in = model.head.condition_in.weight.numel() * rows
    assert found == expected + condition_in
    reader = ColumnReader(model, model.read_classes(torch.tensor([0] * rows)))
    found = multiply_adds(lambda: reader.read(torch.randn(rows, 1, 6)))
    attention = rows * len(model.layers) * 2 * 32 * (1 + model.config.class_tokens)
    assert found == work["transformer"].weights * rows + attention


def test_modulations_that_do_not_fit_are_read_again(model, monkeypatch):
    bytes_a_time = 4 * 2 * model.head.modulated_width
    for module in (cost, drawing):
        monkeypatch.setattr(module, "MODULATION_BYTES", 4 * bytes_a_time)
    work = column_work(model, Solver(steps=10), 2)["modulations"]
    assert (work.rows, work.times) == (8, 3)


def test_the_least_time():
    work = Work(weights=1000, rows=2, times=10)
    assert work.seconds(4, bandwidth=4e3, rate=1e9) == pytest.approx(10.0)  # reading
    assert work.seconds(4, bandwidth=1e9, rate=4e3) == pytest.approx(10.0)  # computing
