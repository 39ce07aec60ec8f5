"""What was set when a folder of results was made, so that two settings never mix in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io import replacing

NAME = "settings.json"


def write_json(path: str | Path, value: Any) -> None:
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Keep a folder for results of these settings.

    Raises:
        UserError: it holds results of other settings, or files of unknown origin.
    """
    path = folder / NAME
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder")
    if path.exists():
        found = _read(path)
        different = [k for k in settings if found.get(k) != settings[k]]
        if different:
            k = different[0]
            raise UserError(
                f"{folder}: holds results made with {k} {found.get(k)!r}, not {settings[k]!r}; "
                "expected another folder, or this one removed"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: not empty, and no {NAME} says how its files were made; "
            "expected a new folder"
        )
    else:
        write_json(path, settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; expected the settings of the results beside it")
    return found
