"""What both stages share: configuration, files, data sets, randomness and processes."""

import sys
from types import TracebackType

_show = sys.excepthook


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """One word after Ctrl-C, which may come in the seconds of importing, before `run_cli`."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _show(kind, error, trace)


sys.excepthook = _excepthook
