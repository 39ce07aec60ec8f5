"""A tokenizer as a folder of two open files: `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common import checkpoint
from common.errors import UserError
from common.records import write_json
from tokenizer.model import Tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer with its sizes and the scale of its tokens.

    Args:
        tokenizer: what `load_tokenizer` gives.
        folder: to write to; what an earlier export left there is replaced.

    Raises:
        UserError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.is_dir() and {p.name for p in folder.iterdir()} - {WEIGHTS, CONFIG}:
        raise UserError(f"{folder}: not empty, and no exported tokenizer; expected a new folder")
    checkpoint.save_safetensors(folder / WEIGHTS, tokenizer.state_dict())
    write_json(folder / CONFIG, tokenizer.sizes)


def read(folder: Path) -> dict[str, Any]:
    """A folder that `export` wrote, in the form of a checkpoint of ours: sizes and weights.

    Raises:
        UserError: one of its files is missing or damaged.
    """
    path = folder / CONFIG
    try:
        sizes = json.loads(path.read_text())
    except OSError:
        raise UserError(
            f"{folder}: holds no {CONFIG}; expected a checkpoint file, or a folder that "
            "scripts/export_tokenizer.py wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return {"tokenizer": sizes, "state_dict": checkpoint.load(folder / WEIGHTS)}
