"""Checkpoint files: whole or not at all, checked for damage, read without running code from them.

A checksum is verified wherever a file is read: the CRC-32 of each part of a `torch.save` archive,
and the one in the header of a safetensors file that is written here. This takes 1 to 2 seconds a
GiB on one core (512 MiB: 0.9 s for an archive, which takes 1.8 s to load; 1.0 s for safetensors).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.io import replacing

SHOWN_NAMES = 5
CHUNK = 2**24  # bytes
NO_CHECKSUM = "00000000"
DTYPES = {  # names in safetensors files
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class _ModelCheckpoint:
    """Stands for the class that Lightning 1 names in its checkpoints."""


ALLOWED = [
    argparse.Namespace,
    (_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def save(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write `payload` with `torch.save`, in place of an older file or not at all.

    `payload` holds tensors and plain Python types only; `load` refuses anything else.

    Raises:
        UserError: a weight or an optimizer's state is not finite; what was there stays.
    """
    for name, tensor in _tensors({k: v for k, v in payload.items() if k != "callbacks"}):
        if not is_finite(tensor):
            raise UserError(
                f"{path}: not written, because {name} is no longer finite: the training has "
                "diverged; expected a lower learning rate, from the checkpoint before"
            )
    with replacing(path) as file:
        torch.save(dict(payload), file)


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor | Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors and string metadata as safetensors, whole or not at all.

    Args:
        path: the file.
        tensors: by name; several tensors under one name are put one behind the other, and need
            not be in memory together if they are mapped from files.
        metadata: `crc32` is added to it, over all other bytes of the file.
    """
    heading: dict[str, Any] = {"__metadata__": {**(metadata or {}), "crc32": NO_CHECKSUM}}
    parts = {name: [t] if isinstance(t, Tensor) else list(t) for name, t in tensors.items()}
    end = 0
    for name, pieces in parts.items():
        begin, end = end, end + sum(piece.nbytes for piece in pieces)
        first = pieces[0]
        shape = list(first.shape)
        if len(pieces) > 1:
            shape[0] = sum(len(piece) for piece in pieces)
        heading[name] = {"dtype": DTYPES[first.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(heading).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    with replacing(path) as file:
        file.write(start)
        checksum = zlib.crc32(start)
        for pieces in parts.values():
            for piece in pieces:
                flat = piece.detach().cpu().contiguous().reshape(-1)
                data = flat.view(torch.uint8).numpy().data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
        file.seek(start.index(b'"crc32"'))
        file.write(_entry(f"{checksum:08x}"))


def load(path: str | os.PathLike[str], verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a `.safetensors` file, or a file of `torch.save` (`.ckpt`, `.pth`, ...).
        verify: read all of it for its checksum first.

    Returns:
        The dictionary in the file; for safetensors the tensors by name (see `load_metadata`),
        mapped rather than read.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds objects other than
            tensors, plain types and what the released files have besides.
    """
    path = _existing_file(path)
    if path.suffix == ".safetensors":
        metadata = _metadata(path)
        if verify and "crc32" in metadata and _checksum(path, metadata["crc32"]):
            raise UserError(f"{path}: damaged (its bytes do not give its checksum)")
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None

    try:
        if verify and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path}: damaged ({damaged} does not give its checksum)")
        with torch.serialization.safe_globals(ALLOWED):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint, or one with objects other than tensors and plain types: "
            f"{_first_reason(error)}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, in C++ and in Python
        raise UserError(
            f"{path}: damaged, or not a checkpoint ({_first_reason(error)}); expected a file that "
            "torch.save wrote, or one named *.safetensors"
        ) from None
    if not isinstance(payload, dict):
        raise UserError(f"{path}: holds a {type(payload).__name__}, expected a dictionary")
    return payload


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the string metadata of a safetensors file, but for the checksum."""
    return {k: v for k, v in _metadata(_existing_file(path)).items() if k != "crc32"}


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_weights(module: nn.Module, state: Mapping[str, Any], source: object) -> None:
    """Load `state` into `module`, all names and shapes agreeing; otherwise change nothing.

    Args:
        module: the module to fill.
        state: weights by name.
        source: where the weights come from, for the message.

    Raises:
        UserError: naming the first few missing, unexpected, differently shaped or infinite ones.
    """
    expected = module.state_dict()
    kinds = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} (found {_shape(state[name])}, expected {_shape(tensor)})"
            for name, tensor in expected.items()
            if name in state and _shape(state[name]) != _shape(tensor)
        ],
        "not finite": [name for name, tensor in _tensors(state) if not is_finite(tensor)],
    }
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN_NAMES])}"
        + (", ..." if len(names) > SHOWN_NAMES else "")
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: the weights do not fit {type(module).__name__}; {'; '.join(problems)}"
        )
    module.load_state_dict(state)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """A short name for a set of weights, the same wherever they are loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def is_finite(tensor: Tensor) -> bool:
    """Whether no number in `tensor` is infinite or NaN."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors inside a checkpoint, with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            yield from _tensors(item, f"{name}.{k}")


def _entry(checksum: str) -> bytes:
    return f'"crc32": "{checksum}"'.encode()


def _checksum(path: Path, expected: str) -> bool:
    """Whether the bytes of a file, but for those that hold it, do not give this checksum."""
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(struct.unpack("<Q", size)[0])
        checksum = zlib.crc32(size + header.replace(_entry(expected), _entry(NO_CHECKSUM), 1))
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}" != expected


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _existing_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    return path


def _first_reason(error: Exception) -> str:
    """The part of a long loader message that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0]
