"""Errors that a person or the system causes, and how a command line shows them: in one line."""

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

GRACE_SECONDS = 3.0  # in which torchrun ends the other processes after the first one has failed
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(ValueError):
    """A mistake in a key, a file or a flag, which the message names."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback; IPython asks for it by this name."""
        return [f"error: {printable(str(self))}"]


class Preempted(BaseException):
    """The program was asked to leave by the signal `number`; `saved` says what of it is safe."""

    def __init__(self, number: int, saved: str = "") -> None:
        self.number, self.saved = number, saved


def run_cli(main: Callable[[], None]) -> None:
    """Run the `main` of a script, with one line for what its user or the system is the cause of.

    Status 2 after such an error, 128 + n after signal n (130 after Ctrl-C). Of several processes
    that meet the same mistake, only the first one tells it, before `torchrun` ends the others.
    """
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except Preempted as request:
        if rank == "0":
            name = signal.Signals(request.number).name
            print(f"stopped by {name}: {request.saved or 'nothing was lost'}", file=sys.stderr)
        sys.exit(128 + request.number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        time.sleep(0 if rank == "0" else GRACE_SECONDS)
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(2)


def explain(error: BaseException) -> str | None:
    """What a user needs to know of `error`; None of one that is a mistake of the program."""
    text = str(error) or type(error).__name__
    if isinstance(error, UserError):  # a loader's worker sends it inside its traceback
        return text.rpartition("UserError: ")[2].strip()
    if type(error).__module__.startswith("omegaconf."):
        return f"configuration: {text}"
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return f"not enough memory: {text.splitlines()[0]}"
    system = cause(error)
    return refused(system, system.filename or "") if system else None


def cause(error: BaseException | None) -> OSError | None:
    """What the system has refused, if that is `error`, or a full disk that a library hides."""
    if isinstance(error, OSError):
        return error
    while error is not None:
        error = error.__cause__ or error.__context__
        if isinstance(error, OSError) and error.errno in FULL:
            return error
    return None


def refused(error: OSError, path: str | os.PathLike[str]) -> str:
    """One line for what the system refused at `path`."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        folder = next(p for p in Path(path).absolute().parents if p.is_dir())
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free on its disk"
        reason = f"cannot be written ({reason}; {free}); what was written before is safe"
    return f"{os.fspath(path)}: {reason}" if path else reason


def printable(text: str) -> str:
    """`text` with control characters, such as a terminal's escape codes, written out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
