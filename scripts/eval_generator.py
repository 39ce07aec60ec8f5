"""Draw images with a trained generator, of any width.

    python scripts/eval_generator.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --output_dir runs/samples --num_images 90 --cfg 4
    torchrun --nproc_per_node=8 scripts/eval_generator.py ... --num_images 50000

Image k goes to OUTPUT/images/k.png and has class k modulo the number of classes. It is the same,
to rounding, for any batch size and number of processes; images that are there already are not
drawn again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from common import distributed, images
from common.errors import UserError, run_cli
from common.latents import weights_hash
from common.logs import progress
from common.records import claim_folder
from generator.decoding import Pieces
from generator.flags import add_size_flags, parse_with_config
from generator.guidance import SCHEDULES, Guidance
from generator.inference import PRECISIONS, prepare
from generator.loading import load_generator
from generator.pipeline import generate
from generator.sampling import Sampling
from generator.solvers import METHODS, Solver
from tokenizer.loading import identity, tokenizer_from_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", metavar="YAML", help="any of these flags; the command line wins"
    )
    add_size_flags(parser)

    add = parser.add_argument_group("models").add_argument
    add("--resume", type=Path, metavar="DIR", help="folder of the generator's checkpoint")
    add("--ckpt", default="checkpoint-last.pth", help="its name there")
    add("--raw", action="store_true", help="use the raw weights rather than their average")
    add("--config_path", help="YAML with the tokenizer (model.params.ckpt_path)")
    add("--vae_norm", type=float, help="scale of the tokens (default: the generator's)")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")

    add = parser.add_argument_group("images").add_argument
    add("--output_dir", type=Path, help="where images and settings go")
    add("--num_images", type=int, default=64)
    add("--token_num", type=int, default=16, help="columns of an image")
    add("--num_iter", type=int, help="columns to draw, the same as --token_num")
    add("--eval_bsz", type=int, default=64, help="images of one batch")
    add("--seed", type=int, default=0)

    add = parser.add_argument_group("sampling").add_argument
    add("--cfg", type=float, default=1.0, help="guidance; 1 is none")
    add("--cfg_schedule", default="linear", choices=SCHEDULES)
    add("--cfg_ramp", type=int, help="columns of the linear growth (default: all)")
    add("--solver", default="euler", choices=METHODS, help="euler: as released")
    add(
        "--num_sampling_steps",
        type=int,
        default=100,
        help="steps a column; heun takes two velocities in each",
    )
    add(
        "--time_power",
        type=float,
        help="times are (i/steps)^power (default: 1 for euler, else 1.5)",
    )
    add("--temperature", type=float, default=1.0, help="scale of the starting noise")
    add(
        "--last_position",
        type=int,
        help="position at which class queries of wide images stay, inside the trained range, "
        "such as the training images' columns (default: none, as released)",
    )
    add(
        "--decode_columns",
        type=int,
        default=256,
        help="columns decoded at once; a wider image is decoded in overlapping pieces",
    )
    add("--decode_overlap", type=int, default=16, help="columns two such pieces share")

    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="fp32", choices=PRECISIONS, help="of matrix products")
    add("--compile", action="store_true", help="compile the flow head (GPUs: a CUDA graph)")
    return parser


def check(flags: argparse.Namespace, world: int) -> None:
    """What can be said before anything is loaded."""
    for name, expected in {
        "resume": "the folder of a generator's checkpoint",
        "config_path": "a YAML file that names the tokenizer",
        "output_dir": "a folder for images",
    }.items():
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; expected {expected}")
    if flags.num_iter not in (None, flags.token_num):
        raise UserError(
            f"--num_iter: found {flags.num_iter}, expected --token_num ({flags.token_num}): "
            "every column takes one iteration"
        )
    for name, least in {"token_num": 2, "eval_bsz": 1}.items():
        if getattr(flags, name) < least:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {least}")
    if flags.num_images < world:
        raise UserError(
            f"--num_images: found {flags.num_images} for {world} processes, expected at least one "
            "for each"
        )


def sampling_of(flags: argparse.Namespace) -> Sampling:
    """What decides a picture, from the flags.

    Raises:
        UserError: a flag has a value that makes no sense.
    """
    ramp = flags.token_num if flags.cfg_ramp is None else flags.cfg_ramp
    return Sampling(
        Guidance(flags.cfg, flags.cfg_schedule, ramp),
        Solver(flags.solver, flags.num_sampling_steps, flags.time_power),
        flags.temperature,
        flags.last_position,
    )


def main() -> None:
    flags = parse_with_config(build_parser())
    with distributed.launch(flags.device) as process:
        check(flags, process.world)
        sampling, pieces = sampling_of(flags), Pieces(flags.decode_columns, flags.decode_overlap)
        source = flags.resume / flags.ckpt
        loaded = load_generator(source, flags, ema=not flags.raw)
        scale = loaded.token_scale if flags.vae_norm is None else flags.vae_norm
        tokenizer = tokenizer_from_config(flags.config_path, scale, flags.overrides)
        loaded.check_tokenizer(identity(tokenizer), source)
        classes = loaded.model.config.classes
        settings = {
            "generator": weights_hash(loaded.model.state_dict()),
            "tokenizer": identity(tokenizer),
            "token_scale": float(tokenizer.token_scale),
            "columns": flags.token_num,
            **asdict(sampling),
            "pieces": asdict(pieces) if flags.token_num > pieces.columns else None,
            "precision": flags.precision,
            "seed": flags.seed,
        }
        model = prepare(loaded.model.to(process.device), flags.precision, flags.compile)
        folder = flags.output_dir / "images"
        if process.is_main:
            claim_folder(flags.output_dir, settings)
        distributed.barrier()

        tokenizer = tokenizer.to(process.device)
        mine = [
            k
            for k in range(process.rank, flags.num_images, process.world)
            if not (folder / f"{k:06d}.png").exists()
        ]
        bar = progress(len(mine), "images", "image", process.is_main)
        for start in range(0, len(mine), flags.eval_bsz):
            numbers = mine[start : start + flags.eval_bsz]
            pictures = generate(
                model,
                tokenizer,
                [k % classes for k in numbers],
                numbers,
                flags.token_num,
                sampling,
                flags.seed,
                pieces=pieces,
            )
            for k, picture in zip(numbers, pictures, strict=True):
                images.save_image(folder / f"{k:06d}.png", picture)
                bar.update()
        bar.close()
        distributed.barrier()
        if process.is_main:
            print(f"images: {folder}")


if __name__ == "__main__":
    run_cli(main)
