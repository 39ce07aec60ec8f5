from __future__ import annotations

import pytest

from common.io import replacing


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise RuntimeError("the power went")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_end(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("durable", [True, False])
def test_parents_are_made_and_permissions_are_the_usual_ones(tmp_path, durable):
    path = tmp_path / "a" / "b" / "file"
    with replacing(path, durable=durable) as file:
        file.write(b"x")
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    assert path.stat().st_mode == plain.stat().st_mode
