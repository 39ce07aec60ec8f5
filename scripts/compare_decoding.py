"""How far wide pictures decoded in overlapping pieces are from those decoded whole.

    python scripts/compare_decoding.py --resume runs/quickstart/generator \\
        --config_path configs/quickstart/stage_two.yaml --token_num 256 --json decoding.json

Draws one wide picture a class, decodes it whole and in pieces of several lengths and overlaps, and
prints, in levels of 0 ... 255: the mean difference to the whole; the mean within the shared
columns alone; and how visible the seams are, that is the mean step between neighbouring pixel
columns at both ends of what two pieces share, divided by the whole picture's step at the same
places: 1 is invisible.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from common import distributed, images
from common import provenance as environment
from common.data.latents import weights_hash
from common.errors import UserError, run_cli
from common.records import write_json
from generator.decoding import Pieces, decode_strips
from generator.flags import add_size_flags, parse_with_config
from generator.guidance import SCHEDULES, Guidance
from generator.inference import prepare
from generator.loading import load_generator
from generator.pipeline import image_noise
from generator.sampling import Sampling, sample
from generator.solvers import METHODS, Solver
from tokenizer.loading import identity, tokenizer_from_config

ROOT = Path(__file__).resolve().parents[1]
OVERLAPS = (0, 1, 2, 4, 8, 16, 32)


def step(pixels: Tensor, places: list[int]) -> float:
    """Mean absolute step from pixel column p − 1 to p, over all places p."""
    before = pixels[..., [p - 1 for p in places]]
    return (pixels[..., places] - before).abs().mean().item()


def compare(whole: Tensor, pixels: Tensor, pieces: Pieces, width: int) -> dict[str, float]:
    """Figures of pictures [B, 3, H, W] in levels; `width` of a column."""
    stride, shared = pieces.columns - pieces.overlap, pieces.overlap * width
    starts = range(stride * width, whole.shape[3] - shared, stride * width)
    places = sorted({p for start in starts for p in (start, start + shared)})
    difference = (pixels - whole).abs()
    figures = {
        **asdict(pieces),
        "difference": difference.mean().item(),
        "seams": step(pixels, places) / step(whole, places),
    }
    if shared:
        inside = [p for start in starts for p in range(start, start + shared)]
        figures["difference_where_shared"] = difference[..., inside].mean().item()
    return figures


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="YAML", help="any of these flags")
    add_size_flags(parser)
    add = parser.add_argument
    add("--resume", type=Path, metavar="DIR", help="folder of the generator's checkpoint")
    add("--ckpt", default="checkpoint-last.pth", help="its name there")
    add("--config_path", help="YAML with the tokenizer (model.params.ckpt_path)")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--token_num", type=int, default=256, help="columns of a picture")
    add("--lengths", nargs="+", type=int, default=[32, 64, 128], help="columns of a piece")
    add("--cfg", type=float, default=2.0, help="guidance")
    add("--cfg_schedule", default="constant", choices=SCHEDULES)
    add("--solver", default="ab2", choices=METHODS)
    add("--num_sampling_steps", type=int, default=25)
    add("--last_position", type=int, default=15)
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser


@torch.no_grad()
def main() -> None:
    flags = parse_with_config(build_parser())
    for name in ("resume", "config_path"):
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; see --help")
    with distributed.launch(flags.device) as process:
        loaded = load_generator(flags.resume / flags.ckpt, flags)
        tokenizer = tokenizer_from_config(flags.config_path, loaded.token_scale, flags.overrides)
        loaded.check_tokenizer(identity(tokenizer), flags.resume / flags.ckpt)
        name = weights_hash(loaded.model.state_dict())
        model, tokenizer = prepare(loaded.model.to(process.device)), tokenizer.to(process.device)
        classes = range(model.config.classes)
        sampling = Sampling(
            Guidance(flags.cfg, flags.cfg_schedule, flags.token_num),
            Solver(flags.solver, flags.num_sampling_steps),
            last_position=flags.last_position,
        )
        noise = image_noise(
            flags.seed, classes, flags.token_num, model.config.channels, model.device
        )
        tokens = sample(model, torch.tensor(classes, device=model.device), noise, sampling)

        def levels(pieces: Pieces) -> Tensor:
            strips = list(decode_strips(tokenizer, tokens.unbind(1), pieces))
            return images.to_uint8(torch.cat(strips, dim=3)).float()

        whole = levels(Pieces(flags.token_num, 0))
        rows = []
        print("columns overlap  difference  where shared  seams")
        for length in flags.lengths:
            for overlap in OVERLAPS:
                if 2 * overlap > length or length >= flags.token_num:
                    continue
                pieces = Pieces(length, overlap)
                row = compare(whole, levels(pieces), pieces, tokenizer.column_width)
                rows.append(row)
                shared = row.get("difference_where_shared", float("nan"))
                print(
                    f"{length:7}{overlap:8}{row['difference']:12.3f}{shared:14.3f}"
                    f"{row['seams']:7.3f}",
                    flush=True,
                )
    if flags.json:
        settings = {
            "generator": name,
            "tokenizer": identity(tokenizer),
            "columns": flags.token_num,
            "pictures": len(classes),
            **asdict(sampling),
            "seed": flags.seed,
        }
        conditions = environment.describe(ROOT)
        write_json(flags.json, {"settings": settings, "conditions": conditions, "pieces": rows})


if __name__ == "__main__":
    run_cli(main)
