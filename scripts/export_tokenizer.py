"""Write a tokenizer as a folder of safetensors weights and JSON sizes, for use elsewhere.

    python scripts/export_tokenizer.py logs/<run>/checkpoints/last.ckpt exported
    python -c "from tokenizer import load_tokenizer; load_tokenizer('exported')"

A released checkpoint does not say its sizes: give the YAML file that does, and names it as
model.params.ckpt_path, such as configs/second_stage/tokenizer_config.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.errors import run_cli
from tokenizer.exported import export
from tokenizer.loading import load_tokenizer, tokenizer_from_config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, help="a checkpoint of ours, or a YAML file that names one")
    add("folder", type=Path, help="to write model.safetensors and config.json to")
    add("--vae_norm", type=float, help="scale of the tokens, instead of the checkpoint's")
    add("overrides", nargs="*", metavar="key=value", help="over the YAML file, by dotted key")
    flags = parser.parse_args()
    if flags.source.suffix in (".yaml", ".yml"):
        tokenizer = tokenizer_from_config(flags.source, flags.vae_norm, flags.overrides)
    else:
        tokenizer = load_tokenizer(flags.source, token_scale=flags.vae_norm)
    export(tokenizer, flags.folder)
    print(
        f"{flags.folder}: {tokenizer.channels} channels a column of {tokenizer.height} × "
        f"{tokenizer.column_width} px, token scale {float(tokenizer.token_scale):.5f}"
    )


if __name__ == "__main__":
    run_cli(main)
