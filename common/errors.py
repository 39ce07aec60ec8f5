"""The one error that a user can cause, and how a command line shows it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

# Time in which torchrun ends the other processes after the first one has failed.
GRACE_SECONDS = 3.0


class UserError(ValueError):
    """A mistake in a key, a file or a flag.

    The message names the key, file or flag, says what was found there and what is expected.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback; IPython asks for it by this name."""
        return [f"error: {self}"]


def run_cli(main: Callable[[], None]) -> None:
    """Run the `main` of a script, without a traceback for what its user can put right.

    Of several processes that meet the same mistake, only the first one tells it: the others wait
    for a moment, in which `torchrun` ends them.

    Raises:
        SystemExit: status 2 after a `UserError`, 130 after Ctrl-C; any other error passes through.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(GRACE_SECONDS)
        print(f"error: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _message(error: UserError) -> str:
    """What the error says; from a loader's worker it comes inside the worker's traceback."""
    text = str(error)
    _, worker, inner = text.rpartition(f"{UserError.__name__}: ")
    return inner.strip() if worker and "DataLoader worker" in text else text
