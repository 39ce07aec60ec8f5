"""Signals that ask a training for a checkpoint: SIGUSR1 to go on after it, SIGTERM to leave."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from common import distributed
from common.distributed import Process


class Interrupted(BaseException):
    """A training was asked to leave, and has written its checkpoint."""


class Requests:
    """What signals ask of this training, agreed on by all its processes.

    Within the `with` block a signal is noted, to be seen at the next call of `agreed`; afterwards
    it has its old meaning.
    """

    SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

    def __init__(self, process: Process) -> None:
        self.process = process
        self._noted = [0] * len(self.SIGNALS)
        self._before: dict[int, object] = {}

    def __enter__(self) -> Requests:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> tuple[bool, bool]:
        """Whether a checkpoint and whether the end is asked for, of any process since the last
        call. All processes call this together."""
        noted = self._noted
        self._noted = [0] * len(self.SIGNALS)
        if self.process.world > 1:
            noted = distributed.total(torch.tensor(noted, device=self.process.device)).tolist()
        save, leave = (count > 0 for count in noted)
        return save or leave, leave

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted[self.SIGNALS.index(number)] = 1


def leave_signals_to_the_trainer(_: int) -> None:
    """For a loader's worker: a signal to the whole group of processes is not meant for it."""
    for number in Requests.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
