"""Execute the notebooks from top to bottom and keep what they show.

    python scripts/run_notebooks.py                       # those of notebooks/, in place
    python scripts/run_notebooks.py --output_dir FOLDER   # copies; the notebooks stay as they are

Times and versions are left out, so that the same outputs are the same file on every machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.reader import NotJSONError

from common.errors import UserError, run_cli
from common.io import replacing

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LANGUAGE = ("name", "file_extension", "mimetype", "pygments_lexer")  # the same for any Python 3


def execute(source: Path, target: Path) -> None:
    """Execute a notebook in its own folder, with a fresh kernel of this Python.

    Args:
        source: of the notebook.
        target: file to write, which may be the same.

    Raises:
        UserError: it is no notebook, or a cell fails; nothing is written then.
    """
    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, NotJSONError) as error:
        raise UserError(f"{source}: not a readable notebook ({type(error).__name__})") from None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
        extra_arguments=["--log-level=ERROR"],  # no word of its local ports
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(f"{source.name}: {error.ename}: {error.evalue}") from None
    language = notebook.metadata.language_info
    notebook.metadata.language_info = {name: language[name] for name in LANGUAGE}
    with replacing(target) as file:
        file.write(f"{nbformat.writes(notebook)}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("notebooks", nargs="*", type=Path, help="files (default: all of notebooks/)")
    add("--output_dir", type=Path, help="where executed copies go (default: in place)")
    flags = parser.parse_args()
    for source in flags.notebooks or sorted(FOLDER.glob("*.ipynb")):
        target = (flags.output_dir or source.parent) / source.name
        execute(source, target)
        print(f"executed: {target}", flush=True)


if __name__ == "__main__":
    run_cli(main)
