"""Where and with what a number was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "pillow")


def describe(repository: Path) -> dict[str, Any]:
    """Versions, hardware, commit and date, for a record beside measured numbers.

    Args:
        repository: folder of the code; without git there, `commit` is None.

    Returns:
        Plain values; nothing in them names a user, a machine or a path.
    """
    return {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit(repository),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def commit(repository: Path) -> str | None:
    """The commit that is checked out, with `+changes` where tracked files differ from it."""
    head = _git(repository, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _git(repository, "status", "--porcelain", "-uno") else "")


def processor() -> str:
    """The model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # other systems than Linux
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(repository: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
