"""Draw images with a trained generator, of any width.

    python scripts/eval_generator.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --output_dir runs/samples --num_images 90 --cfg 4
    torchrun --nproc_per_node=8 scripts/eval_generator.py ... --num_images 50000

Image k goes to OUTPUT/images/k.png. It is the same file for any number of processes, and the same
picture, to rounding, for any batch size. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

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
from generator.pipeline import generate, prefix_columns, prefix_picture
from generator.sampling import Sampling
from generator.series import Series, image_labels
from generator.solvers import METHODS, Solver
from tokenizer.loading import identity, tokenizer_from_config

LONG = 64  # columns from which an image has a progress bar of its own


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
    add("--num_images", type=int, default=64, help="exactly so many files")
    add(
        "--labels",
        default="balanced",
        help="balanced: image k has class k modulo their number; random; or classes taken in "
        "turn, by name or number: 3,7-9,sea",
    )
    add("--token_num", type=int, help="columns of an image (default: as trained, or 16)")
    add("--num_iter", type=int, help="another name of it: every column takes one iteration")
    add("--seed", type=int, default=0)
    add("--prefix_image", type=Path, metavar="FILE", help="a picture that all images go on with")
    add(
        "--prefix_side",
        default="right",
        choices=("right", "left"),
        help="where they go on; left mirrors the picture, which suits models trained with flips",
    )
    add("--format", default="png", choices=("png",), help="of the files: 8 bits, without loss")

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
    add("--eval_bsz", type=int, default=64, help="images of one batch, which one process draws")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="fp32", choices=PRECISIONS, help="of matrix products")
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    add("--compile", action="store_true", help="compile the flow head (GPUs: a CUDA graph)")
    add("--diffusion_batch_mul", type=int, help="of training; taken, and without effect here")
    return parser


def check(flags: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    for name, expected in {
        "resume": "the folder of a generator's checkpoint",
        "config_path": "a YAML file that names the tokenizer",
        "output_dir": "a folder for images",
    }.items():
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; expected {expected}")
    if flags.token_num is None:
        flags.token_num = flags.num_iter
    if flags.num_iter not in (None, flags.token_num):
        raise UserError(
            f"--num_iter: found {flags.num_iter}, expected --token_num ({flags.token_num}): "
            "every column takes one iteration"
        )
    for name, least in {"token_num": 2, "eval_bsz": 1, "num_images": 1}.items():
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")


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


def check_prefix(flags: argparse.Namespace, columns: int) -> None:
    if columns >= flags.token_num:
        raise UserError(
            f"--token_num: found {flags.token_num}, but {flags.prefix_image} has {columns} columns "
            "already; expected more"
        )


def main() -> None:
    flags = parse_with_config(build_parser())
    with distributed.launch(flags.device) as process:
        check(flags)
        pieces = Pieces(flags.decode_columns, flags.decode_overlap)
        source = flags.resume / flags.ckpt
        loaded = load_generator(source, flags, ema=not flags.raw)
        flags.token_num = flags.token_num or loaded.columns or 16
        sampling = sampling_of(flags)
        label = image_labels(flags.labels, loaded.class_names, flags.seed)
        scale = loaded.token_scale if flags.vae_norm is None else flags.vae_norm
        tokenizer = tokenizer_from_config(flags.config_path, scale, flags.overrides)
        loaded.check_tokenizer(identity(tokenizer), source)
        settings = {
            "generator": weights_hash(loaded.model.state_dict()),
            "tokenizer": identity(tokenizer),
            "token_scale": float(tokenizer.token_scale),
            "columns": flags.token_num,
            "labels": flags.labels,
            **asdict(sampling),
            "pieces": asdict(pieces) if flags.token_num > pieces.columns else None,
            "precision": flags.precision,
            "seed": flags.seed,
        }
        given, mirrored = {}, flags.prefix_image and flags.prefix_side == "left"
        if flags.prefix_image:
            picture = prefix_picture(flags.prefix_image, tokenizer, flags.prefix_side)
            given = prefix_columns(picture, tokenizer, flags.prefix_side)
            check_prefix(flags, len(given))
            settings["prefix"] = [weights_hash({"picture": picture}), flags.prefix_side]
        model = prepare(loaded.model.to(process.device), flags.precision, flags.compile)
        given = {i: column.to(process.device) for i, column in given.items()}
        tokenizer = tokenizer.to(process.device)
        if process.is_main:
            claim_folder(flags.output_dir, settings)
        distributed.barrier()

        series = Series(flags.output_dir / "images", flags.num_images, flags.eval_bsz)
        done, batches = series.done(), series.batches()
        distributed.barrier()  # all processes have seen the same files
        shown = process.is_main
        bar = progress(flags.num_images, "images", "image", shown, initial=len(done))

        def columns_drawn(columns: Iterator[Tensor]) -> Iterator[Tensor]:
            """Passes them on beside a bar of their own, for images that take minutes."""
            hidden = not shown or flags.token_num < LONG
            with progress(flags.token_num, "columns", "column", not hidden, passing=True) as drawn:
                for column in columns:
                    yield column
                    drawn.update()

        for numbers in batches[process.rank :: process.world]:
            pictures = generate(
                model,
                tokenizer,
                [label(k) for k in numbers],
                numbers,
                flags.token_num,
                sampling,
                flags.seed,
                {i: column.expand(len(numbers), -1) for i, column in given.items()},
                pieces,
                columns_drawn,
            )
            for k, picture in zip(numbers, pictures, strict=True):
                if k not in done:
                    images.save_image(series.path(k), picture.flip(2) if mirrored else picture)
            if shown:
                bar.update(len(series.done()) - bar.n)  # those of all processes
        distributed.barrier()
        bar.update(flags.num_images - bar.n)
        bar.close()
        if shown:
            print(f"images: {series.folder}")


if __name__ == "__main__":
    run_cli(main)
