"""The one error that a user can cause, and how a command line shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a key, a file or a flag.

    The message names the key, file or flag, says what was found there and what is expected.
    """


def run_cli(main: Callable[[], None]) -> None:
    """Run the `main` of a script, without a traceback for what its user can put right.

    Raises:
        SystemExit: status 2 after a `UserError`, 130 after Ctrl-C; any other error passes through.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
