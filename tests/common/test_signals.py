import os
import signal

import pytest
import torch

from common.distributed import Process
from common.signals import PreemptionHandler

ALONE = Process(0, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("number", "leave"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 15), (signal.SIGINT, 2)]
)
def test_a_signal_is_seen_once(number, leave):
    before = signal.getsignal(number)
    with PreemptionHandler(ALONE) as handler:
        assert handler.requested() == (False, 0)
        os.kill(os.getpid(), number)
        assert handler.requested() == (True, leave)
        assert handler.requested() == (False, 0)
    assert signal.getsignal(number) is before


def test_a_second_interrupt_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), PreemptionHandler(ALONE):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
