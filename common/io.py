"""Files that are either the old one or the whole new one, whenever the program is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; it takes the place of `path` at the end.

    After an exception inside the block the temporary file is removed and `path` is as it was.

    Args:
        path: the file to create or replace; missing parent folders are made.
        durable: wait until the bytes are on the disk, so that a power cut cannot undo the write.
            Without it, only a crash of the program is covered.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are readable by their owner only, and stay so after the renaming.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open a folder; the renaming itself is done
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot flush a folder
        pass
    finally:
        os.close(descriptor)
