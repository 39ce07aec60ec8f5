"""Preemption: signals that ask a training for a checkpoint, to go on after it or to leave.

SIGUSR1 asks for a checkpoint; SIGTERM and SIGINT (Ctrl-C) for a checkpoint and the end; a second
Ctrl-C ends at once.
"""

import signal
from types import FrameType
from typing import Any

import torch

from common import distributed
from common.distributed import Process

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class PreemptionHandler:
    """What signals ask of this training, agreed on by all its processes: within the `with` block a
    signal is noted, to be seen at the next call of `requested`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._noted = [0] * len(SIGNALS)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionHandler":
        before: dict[int, Any] = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._before = self._before or before  # entered again over another's handlers
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> tuple[bool, int]:
        """Whether a checkpoint is asked for, of any process since the last call, and the number of
        the signal that asks to leave (0: none). All processes call this together."""
        noted, self._noted = self._noted, [0] * len(SIGNALS)
        if self.process.world > 1:
            counts = torch.tensor(noted, device=self.process.device)
            noted = distributed.all_reduce_sum(counts).tolist()
        leave = next((int(n) for n, count in zip(SIGNALS[1:], noted[1:], strict=True) if count), 0)
        return any(noted), leave

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted[SIGNALS.index(number)] = 1
        if number == signal.SIGINT:  # the next one is not noted, but felt
            signal.signal(number, signal.default_int_handler)


def ignore_signals(_: int) -> None:
    """For a loader's worker: a signal to the whole group of processes is not meant for it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
