"""Provenance: where and with what a number was measured."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "pillow")


def describe() -> dict[str, Any]:
    """Versions, hardware, commit (`+changes` if tracked files differ) and date, for a record beside
    measured numbers; nothing names a user, a machine or a path."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "commit": head and head + ("+changes" if changes else ""),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor() -> str:
    """The model name of the processor."""
    with suppress(OSError):  # of other systems than Linux
        if named := re.search(r"model name\s*:(.*)", Path("/proc/cpuinfo").read_text()):
            return named[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
