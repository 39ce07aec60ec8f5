"""Checkpoint files: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from common.errors import UserError
from common.io import replacing

SHOWN_NAMES = 5


def save(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write `payload` with `torch.save`, in place of an older file or not at all.

    `payload` holds tensors and plain Python types only; `load` refuses anything else.
    """
    with replacing(path) as file:
        torch.save(dict(payload), file)


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors and string metadata as safetensors, whole or not at all."""
    # Copies, because the format takes neither tensors that share memory nor strided views.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as file:
        file.write(safetensors.torch.save(copies, dict(metadata) if metadata else None))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a `.safetensors` file, or a file of `torch.save` (`.ckpt`, `.pth`, ...).

    Returns:
        The dictionary in the file; for safetensors the tensors by name (see `load_metadata`).

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds objects other than
            tensors, plain types and `argparse.Namespace`.
    """
    path = _existing_file(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint, or one with objects other than tensors and plain types: "
            f"{_first_reason(error)}"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways, in C++ and in Python
        raise UserError(
            f"{path}: damaged, or not a checkpoint ({_first_reason(error)}); expected a file that "
            "torch.save wrote, or one named *.safetensors"
        ) from None
    if not isinstance(payload, dict):
        raise UserError(f"{path}: holds a {type(payload).__name__}, expected a dictionary")
    return payload


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the string metadata of a safetensors file."""
    path = _existing_file(path)
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
        UserError: naming the first few missing, unexpected and differently shaped weights.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    different = [
        f"{name} (found {_shape(state[name])}, expected {_shape(tensor)})"
        for name, tensor in expected.items()
        if name in state and _shape(state[name]) != _shape(tensor)
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN_NAMES])}"
        + (", ..." if len(names) > SHOWN_NAMES else "")
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", different),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: the weights do not fit {type(module).__name__}; {'; '.join(problems)}"
        )
    module.load_state_dict(state)


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


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
