"""Checkpoint files: whole or not at all, checked for damage, read without running code from them.

Reading verifies a checksum, of each part of a `torch.save` archive or of a whole safetensors file
that is written here: 1 to 2 seconds a GiB on one core.
"""

import argparse
import hashlib
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from common.errors import UserError
from common.io import replacing

SHOWN = 400  # characters of names
NO_CHECKSUM, CHECKSUM = b'"crc32": "00000000"', b'"crc32": "%08x"'
# names in safetensors files
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


class _ModelCheckpoint:
    """Stands for the class that Lightning 1 names in its checkpoints."""


ALLOWED = [
    argparse.Namespace,
    (_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def save(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write `payload`, of tensors and plain Python types, with `torch.save`; what was there stays
    if a weight or an optimizer's state is not finite."""
    states = {name: value for name, value in payload.items() if name != "callbacks"}
    for keys, tensor in tree_flatten_with_path(states)[0]:
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            found = f"{keystr(keys)} is no longer finite, the training has diverged"
            raise UserError(f"{path}: not written: {found}; expected a lower learning rate")
    with replacing(path) as file:
        torch.save(dict(payload), file)


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor | Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors and string metadata, with `crc32` over all other bytes, as safetensors.

    Several tensors under one name are put one behind the other, and need not be in memory together
    if they are mapped from files.
    """
    parts = {name: [t] if isinstance(t, Tensor) else list(t) for name, t in tensors.items()}
    heading: dict[str, Any] = {"__metadata__": {**(metadata or {}), "crc32": "00000000"}}
    end = 0
    for name, pieces in parts.items():
        begin, end = end, end + sum(piece.nbytes for piece in pieces)
        kind = DTYPES[pieces[0].dtype]
        shape = [sum(map(len, pieces)), *pieces[0].shape[1:]] if pieces[0].ndim else []
        heading[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(heading).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    with replacing(path) as file:
        file.write(start)
        checksum = zlib.crc32(start)
        for piece in chain.from_iterable(parts.values()):
            data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            checksum = zlib.crc32(data, checksum)
            file.write(data)
        file.seek(start.index(NO_CHECKSUM))
        file.write(CHECKSUM % checksum)


def load(path: str | os.PathLike[str], verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: the dictionary in the file, or of a `.safetensors` file the
    tensors by name, mapped rather than read. To `verify` its checksum, all of it is read first.
    Refused are objects other than tensors, plain types and what the released files have besides.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            if verify:
                _verify(path)
            return safetensors.torch.load_file(path)
        if verify and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"{damaged} does not give its checksum")
        with torch.serialization.safe_globals(ALLOWED):
            payload = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(payload, dict):
            raise ValueError(f"holds a {type(payload).__name__}, expected a dictionary")
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, in C++ and in Python
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "objects of other types"
        raise UserError(f"{path}: damaged, or not of tensors and plain types ({reason})") from None
    return payload


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the string metadata of a safetensors file, but for the checksum."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: v for k, v in (file.metadata() or {}).items() if k != "crc32"}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _verify(path: Path) -> None:
    """Compare the checksum in the header, if there is one, with that of all other bytes."""
    with safetensors.safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get("crc32")
    if expected is None:
        return
    content = np.memmap(path, np.uint8, "r")
    end = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = content[:end].tobytes().replace(f'"crc32": "{expected}"'.encode(), NO_CHECKSUM, 1)
    if f"{zlib.crc32(content[end:].data, zlib.crc32(header)):08x}" != expected:
        raise ValueError("its bytes do not give its checksum")


def load_weights(module: nn.Module, state: Mapping[str, Any], source: object) -> None:
    """Load `state` of the file `source`, all names and shapes agreeing and all numbers finite."""
    bad = [k for k, x in state.items() if isinstance(x, Tensor) and not x.isfinite().all()]
    if bad:
        raise UserError(f"{source}: not finite: {', '.join(bad)[:SHOWN]}")
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:SHOWN]
        raise UserError(f"{source}: the weights do not fit: {reason}") from None


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """A short name for a set of weights, the same wherever they are loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
