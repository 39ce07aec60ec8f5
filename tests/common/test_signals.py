from __future__ import annotations

import os
import signal

import pytest
import torch

from common.distributed import Process
from common.signals import Requests

ALONE = Process(0, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("number", "asked"), [(signal.SIGUSR1, (True, False)), (signal.SIGTERM, (True, True))]
)
def test_a_signal_is_seen_once(number, asked):
    before = signal.getsignal(number)
    with Requests(ALONE) as requests:
        assert requests.agreed() == (False, False)
        os.kill(os.getpid(), number)
        assert requests.agreed() == asked
        assert requests.agreed() == (False, False)
    assert signal.getsignal(number) is before


def test_leaving_twice_keeps_what_came_after():
    requests = Requests(ALONE)
    with requests:
        pass
    mine = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    requests.__exit__()
    assert signal.signal(signal.SIGUSR1, mine) is signal.SIG_IGN
