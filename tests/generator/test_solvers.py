import math
from itertools import pairwise

import pytest
import torch

from generator.solvers import METHODS, Solver

ORDERS = {"euler": 1, "heun": 2, "ab2": 2}


def gaussian(t, x, s=0.6):
    """The field of data N(0, s²): E[(ε − x_0)·x_t] / E[x_t²] · x. It carries x to s·x."""
    return (t - (1 - t) * s * s) / (t * t + (1 - t) ** 2 * s * s) * x


def error(method, times):
    noise = torch.ones(1, dtype=torch.float64)
    return abs(METHODS[method](lambda x, t: gaussian(t, x), noise, times).item() - 0.6)


def even(n):
    return [i / n for i in range(n, -1, -1)]


def uneven(n):
    """Long and short steps in turn, 3:1."""
    ends = [1.0]
    for i in range(n):
        ends.append(ends[-1] - (1.5 if i % 2 == 0 else 0.5) / n)
    return [*ends[:-1], 0.0]


@pytest.mark.parametrize("times", [even, lambda n: [t**1.5 for t in even(n)], uneven])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_convergence(method, times):
    """Twice as many steps divide the error by 2 to the order, whatever their lengths."""
    errors = [error(method, times(n)) for n in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.2)
    assert errors[1] < {1: 0.02, 2: 0.0005}[ORDERS[method]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 7])
def test_velocities_that_are_asked_for(method, steps):
    solver, asked = Solver(method, steps), []

    def velocity(x, t):
        asked.append(t)
        return x

    solver.solve(velocity, torch.ones(1))
    assert len(asked) == steps * (2 if method == "heun" else 1)
    assert list(dict.fromkeys(asked)) == solver.asked
