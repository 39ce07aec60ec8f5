"""A sequence of steps in a folder, recorded there: what was interrupted goes on where it stopped.

For scripts with the flags `--output FOLDER` and `--fresh`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.records import write_json


@dataclass(frozen=True)
class Step:
    """A part of a run that is done once.

    Args:
        name: of the step.
        run: does it, on from an attempt that was interrupted; returns what it measured, as JSON
            can hold it.
        outputs: what it leaves in the folder of the run; nothing else writes into their folders.
        needs: earlier steps whose outputs it reads; when one is done again, so is this one.
    """

    name: str
    run: Callable[[], dict[str, Any] | None]
    outputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Record:
    """What has been done in a folder: for each step its seconds, attempts and measured figures.

    Args:
        path: of the record, in the folder of the run; its stem is what messages call the run.
        settings: of this run; those of the folder must be the same.
        steps: in their order.
    """

    def __init__(self, path: Path, settings: dict[str, Any], steps: Sequence[Step]) -> None:
        self.path, self.folder = path, path.parent
        self.settings, self.steps = settings, steps
        self.entries: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []

    def prepare(self, fresh: bool, pages: Iterable[str] = ()) -> None:
        """Find out whether to go on or to begin, and say so.

        Args:
            fresh: remove what an earlier run left.
            pages: what it left beside the outputs of its steps.

        Raises:
            UserError: the folder holds something else than such a run, or one of other settings.
        """
        folder, name = self.folder, self.path.stem
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output: {folder} is a file, expected a folder")
        if folder.is_dir() and any(folder.iterdir()) and not self.path.exists():
            raise UserError(
                f"--output: {folder} is not empty, and no {self.path.name} in it says that a "
                f"{name} made it; expected a new folder"
            )
        if fresh and self.path.exists():
            outputs = [output for step in self.steps for output in step.outputs]
            self._remove(*outputs, *pages, self.path.name)
        if not self.path.exists():
            self.write()
            print(f"Starting afresh in {folder}.", flush=True)
            return
        self.read()
        done = [step.name for step in self.steps if self.is_done(step)]
        if len(done) == len(self.steps):
            print(f"Resuming {folder}: all steps are done; only the report is written again.")
        else:
            left = f"done: {', '.join(done)}" if done else "no step is done yet"
            print(f"Resuming {folder}; {left}. --fresh starts over.", flush=True)

    def read(self) -> None:
        """Take over what the folder's record says.

        Raises:
            UserError: it is damaged, or of a run with other settings.
        """
        try:
            found = json.loads(self.path.read_text())
            self.entries, self.runs = found["steps"], found["runs"]
            before = found["settings"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path}: damaged; expected the record of a {self.path.stem}. Use --fresh"
            ) from None
        for key, value in self.settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self.folder}: was made with {key} {before.get(key)}, found {value} now; "
                    "use --fresh, or another --output"
                )

    def write(self) -> None:
        """Replace the folder's record by this one."""
        write_json(self.path, {"settings": self.settings, "runs": self.runs, "steps": self.entries})

    def is_done(self, step: Step) -> bool:
        """Whether the step has ended, and all that it left is still there."""
        made = all((self.folder / output).exists() for output in step.outputs)
        return made and self.entries.get(step.name, {}).get("done", False)

    def complete(self, machine: dict[str, Any]) -> None:
        """Do the steps that are left.

        Args:
            machine: on which this is done; joins `runs` if there is something to do.

        Raises:
            SystemExit: a script failed; with its code.
        """
        if not all(map(self.is_done, self.steps)):
            self.runs.append(machine)
        for number, step in enumerate(self.steps, 1):
            if self.is_done(step):
                continue
            print(f"\n[{number}/{len(self.steps)}] {step.name}", flush=True)
            try:
                self.carry_out(step)
            except ScriptFailed as error:
                print(f"error: step {step.name!r}: {error}; see above", file=sys.stderr)
                sys.exit(error.code)

    def carry_out(self, step: Step) -> None:
        """Do a step, on from an attempt that was interrupted; all that rests on it is void."""
        if self.entries.get(step.name, {}).get("done"):
            self._discard(step)
        void = {step.name}
        for other in self.steps:
            if void & set(other.needs):
                void.add(other.name)
                self._discard(other)
        entry = self.entries.setdefault(step.name, {"seconds": 0.0, "attempts": 0, "done": False})
        entry["attempts"] += 1
        names = [s.name for s in self.steps if s.name in self.entries]
        self.entries = {name: self.entries[name] for name in names}
        self.write()
        start = time.monotonic()
        try:
            entry["figures"] = step.run() or {}
            entry["done"] = True
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 2)
            self.write()

    def _discard(self, step: Step) -> None:
        self._remove(*step.outputs)
        self.entries.pop(step.name, None)

    def _remove(self, *outputs: str) -> None:
        for output in outputs:
            remove(self.folder / Path(output).parts[0])


class ScriptFailed(Exception):
    """A script ended with a code other than 0."""

    def __init__(self, script: str, code: int) -> None:
        super().__init__(f"{script} ended with exit code {code}")
        self.code = code if code > 0 else 128 - code  # as a shell tells of a signal


def run_script(script: Path, *arguments: object) -> dict[str, Any]:
    """Show a command and run it.

    Returns:
        `command`: what a user would type for it.

    Raises:
        ScriptFailed: it ended with a code other than 0.
    """
    words = [os.path.relpath(script), *map(str, arguments)]
    command = f"python {shlex.join(words)}"
    print(f"$ {command}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise ScriptFailed(words[0], code)
    return {"command": command}


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
