import errno
import signal

import pytest
import torch

from common import config
from common.errors import Preempted, UserError, run_cli


def ended(error, capsys):
    """The exit status, and what is said, of a program that ends with `error`."""

    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_cli(main)
    return exit_.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("--seed: found x"), "error: --seed: found x\n"),
        (UserError("a\x1b[31mb.png: no image"), "error: a\\x1b[31mb.png: no image\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x.pth"), "x.pth: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/x.pth"), "/x.pth: cannot be written"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory"),
        (config.OmegaConfBaseException("loop"), "configuration: loop"),
    ],
)
def test_what_a_person_or_the_system_causes_is_one_line_and_status_2(error, said, capsys):
    status, line = ended(error, capsys)
    assert status == 2 and said in line and line.count("\n") == 1


def test_signals_give_their_status(capsys):
    assert ended(KeyboardInterrupt(), capsys) == (130, "interrupted\n")
    status, line = ended(Preempted(signal.SIGTERM, "go on"), capsys)
    assert status == 143 and line == "stopped by SIGTERM: go on\n"
