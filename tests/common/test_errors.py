from __future__ import annotations

import pytest

from common.errors import UserError, run_cli


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        run_cli(raising(UserError("--seed: found x, expected a number")))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: --seed: found x, expected a number\n"


def test_a_notebook_shows_one_line(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    done = shell.run_cell("""
from common.errors import UserError
raise UserError("weights.ckpt: no such file")
""")
    assert isinstance(done.error_in_exec, UserError)
    assert capsys.readouterr().out == "error: weights.ckpt: no such file\n"


def test_an_interrupt_is_status_130(capsys):
    with pytest.raises(SystemExit) as exit_:
        run_cli(raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()))


def test_success_returns():
    calls = []
    assert run_cli(lambda: calls.append(1)) is None
    assert calls == [1]
