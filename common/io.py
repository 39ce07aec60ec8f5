"""Files that are either the old one or the whole new one, whenever the program is stopped."""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from common.errors import UserError, cause, refused

SETTINGS = "settings.json"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp")

_swept: set[Path] = set()  # folders in which this process has looked for leftovers


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; it takes the place of `path` at the end.

    After an exception inside the block `path` is as it was. What killed processes have left in a
    folder is removed before the first write into it; missing folders are made. A `durable` write
    waits until the bytes are on the disk, so that a power cut cannot undo it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary, file = _open_temporary(path)
        try:
            with file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            with suppress(OSError):  # some systems cannot open a folder, or cannot flush it
                descriptor = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    except Exception as error:
        system = cause(error)
        if system is None:
            raise
        raise UserError(refused(system, path)) from error


def _open_temporary(path: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside `path`, locked for as long as it is open: so a leftover is told apart."""
    while True:
        # A name that nobody foresees, so that no link can wait there and lead to another file. Not
        # `tempfile`: its files are readable by their owner only, and stay so after the renaming.
        temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
        file = temporary.open("x+b")  # follows no link
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # swept away by another process before it was locked


def _sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` that no living process writes."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds a record."""
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(refused(error, path)) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; expected a JSON file with a record of names and values")
    return found


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keep a folder for results of these settings, which `settings.json` in it records."""
    path = folder / SETTINGS
    if path.exists():
        check_same(folder, read_json(path), settings)
    elif folder.is_dir() and not all(TEMPORARY.fullmatch(p.name) for p in folder.iterdir()):
        raise UserError(f"{folder}: not empty, and without {SETTINGS}; expected a new folder")
    else:
        write_json(path, settings)


def check_same(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what was made with other settings than these."""
    for key, value in settings.items():
        if found.get(key) != value:
            raise UserError(f"{path}: made with {key} {found.get(key)!r}, not {value!r}")
