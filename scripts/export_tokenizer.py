"""Write a tokenizer as a folder of safetensors weights and JSON sizes, for use elsewhere.

    python scripts/export_tokenizer.py logs/<run>/checkpoints/last.ckpt exported
    python -c "from tokenizer import load_tokenizer; load_tokenizer('exported')"

A released checkpoint does not say its sizes: give the YAML file that does, and names it as
model.params.ckpt_path, such as configs/second_stage/tokenizer_config.yaml.
"""

from pathlib import Path

from common import cli
from common.errors import run_cli
from tokenizer.checkpoints import export, load_tokenizer


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, help="checkpoint of ours, or YAML file that names another")
    add("folder", type=Path, help="where model.safetensors and config.json go")
    add("--vae_norm", type=float, help="scale of the tokens, instead of the checkpoint's")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("overrides", nargs="*", metavar="key=value", help="over the YAML file, by dotted key")
    flags = cli.parse(parser)
    tokenizer = load_tokenizer(flags.source, flags.overrides, flags.vae_norm)
    export(tokenizer, flags.folder, flags.overwrite)
    size = f"{tokenizer.height} × {tokenizer.column_width} px"
    scale = f"token scale {float(tokenizer.token_scale):.5f}"
    print(f"{flags.folder}: {tokenizer.channels} channels a column of {size}, {scale}")


if __name__ == "__main__":
    run_cli(main)
