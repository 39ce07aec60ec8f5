"""What both stages share: configuration, files, data sets, randomness and processes."""

import sys

_show = sys.excepthook


def _excepthook(kind, error, trace) -> None:
    """One word after Ctrl-C, which may come in the seconds of importing, before `run_cli`."""
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        _show(kind, error, trace)


sys.excepthook = _excepthook
