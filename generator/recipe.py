"""What decides the images that a generator draws, beside its weights: flags of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.data.latents import weights_hash
from common.errors import UserError
from generator.decoding import Pieces
from generator.flags import add_size_flags
from generator.guidance import SCHEDULES, Guidance
from generator.inference import PRECISIONS
from generator.pipeline import Tokenizer, prefix_columns, prefix_picture
from generator.sampling import Columns, Sampling
from generator.series import image_labels
from generator.solvers import METHODS, Solver

COLUMNS = 16  # where neither flags nor checkpoint say it


@dataclass(frozen=True)
class Prefix:
    """A picture with which all images begin.

    Args:
        picture: [1, 3, H, W] in [-1, 1].
        columns: [1, C] each, mirrored ones for the left side; see `generator.pipeline`.
        side: where images go on.
    """

    picture: Tensor
    columns: Columns
    side: str


@dataclass(frozen=True)
class Recipe:
    """Args:
    columns: of each image.
    sampling, pieces, seed: see `generator.pipeline.generate`.
    labels: which classes are drawn, see `generator.series.image_labels`.
    prefix: with which all images begin, if any.
    """

    columns: int
    sampling: Sampling
    pieces: Pieces
    labels: str = "balanced"
    seed: int = 0
    prefix: Prefix | None = None

    def settings(self) -> dict[str, Any]:
        """Plain values; two recipes that have the same ones draw the same images."""
        values = {
            "columns": self.columns,
            "labels": self.labels,
            **asdict(self.sampling),
            "pieces": asdict(self.pieces) if self.columns > self.pieces.columns else None,
            "seed": self.seed,
        }
        if self.prefix:
            picture = weights_hash({"picture": self.prefix.picture})
            values["prefix"] = {"picture": picture, "side": self.prefix.side}
        return values


def add_image_flags(parser: argparse.ArgumentParser, num_images: int) -> None:
    """Flags of a series of images; `num_images` is the default of the flag of this name."""
    add = parser.add_argument_group("images", "which pictures").add_argument
    add("--output_dir", type=Path, help="where images and settings go")
    add("--num_images", type=int, default=num_images, help="exactly so many files")
    add(
        "--labels",
        default="balanced",
        help="balanced: image k has class k modulo their number; random; or classes taken in "
        "turn, by name or number: 3,7-9,sea",
    )
    add("--token_num", type=int, help=f"columns of an image (default: as trained, or {COLUMNS})")
    add("--num_iter", type=int, help="another name of it: every column takes one iteration")
    add("--seed", type=int, default=0, help="of all noise and of random labels")
    add("--prefix_image", type=Path, metavar="FILE", help="a picture that all images go on with")
    add(
        "--prefix_side",
        default="right",
        choices=("right", "left"),
        help="where they go on; left mirrors the picture, which suits models trained with flips",
    )
    add("--format", default="png", choices=("png",), help="of the files: 8 bits, without loss")
    add(
        "--decode_columns",
        type=int,
        default=256,
        help="columns decoded at once; a wider image is decoded in overlapping pieces",
    )
    add("--decode_overlap", type=int, default=16, help="columns two such pieces share")


def add_sampling_flags(parser: argparse.ArgumentParser, cfg: bool = True) -> None:
    """Flags of `Sampling`; without `cfg`, but for the scale of the guidance."""
    about = "how they are drawn: each of these changes the pictures"
    add = parser.add_argument_group("sampling", about).add_argument
    if cfg:
        add("--cfg", type=float, default=1.0, help="guidance; 1 is none")
    add("--cfg_schedule", default="linear", choices=SCHEDULES, help="of guidance over the columns")
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


def add_model_flags(parser: argparse.ArgumentParser, raw: bool = False) -> None:
    """Flags that say which generator and tokenizer draw; `raw` adds one for raw weights."""
    add_size_flags(parser)
    add = parser.add_argument_group("models").add_argument
    add("--resume", type=Path, metavar="DIR", help="folder of the generator's checkpoint")
    add("--ckpt", default="checkpoint-last.pth", help="its name there")
    if raw:
        add("--raw", action="store_true", help="raw weights rather than their average")
    add("--config_path", help="YAML with the tokenizer (model.params.ckpt_path)")
    add("--vae_norm", type=float, help="scale of the tokens (default: the generator's)")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that change pictures by rounding at most."""
    about = "the same pictures to rounding; with tf32 and bf16 nearly the same"
    add = parser.add_argument_group("speed", about).add_argument
    add("--eval_bsz", type=int, default=64, help="images of one batch, which one process draws")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="fp32", choices=PRECISIONS, help="of matrix products")
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    add("--compile", action="store_true", help="compile the flow head (GPUs: a CUDA graph)")
    add("--diffusion_batch_mul", type=int, help="of training; taken, and without effect here")


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse numbers that make no sense, before anything is loaded."""
    for name, expected in {
        "resume": "the folder of a generator's checkpoint",
        "config_path": "a YAML file that names the tokenizer",
        "output_dir": "a folder for images",
    }.items():
        if getattr(flags, name) is None:
            raise UserError(f"--{name}: not given; expected {expected}")
    if flags.cfg_ramp is not None and flags.cfg_schedule != "linear":
        raise UserError(f"--cfg_ramp: given with --cfg_schedule {flags.cfg_schedule}")
    if flags.prefix_side != "right" and not flags.prefix_image:
        raise UserError(f"--prefix_side: found {flags.prefix_side} without --prefix_image")
    if flags.token_num is None:
        flags.token_num = flags.num_iter
    if flags.num_iter not in (None, flags.token_num):
        raise UserError(
            f"--num_iter: found {flags.num_iter}, expected --token_num ({flags.token_num}): "
            "every column takes one iteration"
        )
    for name, least in {"token_num": 2, "num_images": 1, "eval_bsz": 1}.items():
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}, expected at least {least}")


def recipe_of(
    flags: argparse.Namespace,
    cfg: float,
    trained_columns: int | None,
    class_names: Sequence[str],
    tokenizer: Tokenizer,
) -> Recipe:
    """The recipe that the flags give, with guidance `cfg`.

    Raises:
        UserError: a flag has a value that makes no sense.
    """
    columns = flags.token_num or trained_columns or COLUMNS
    image_labels(flags.labels, class_names, flags.seed)  # which may not be there
    sampling = Sampling(
        Guidance(cfg, flags.cfg_schedule, columns if flags.cfg_ramp is None else flags.cfg_ramp),
        Solver(flags.solver, flags.num_sampling_steps, flags.time_power),
        flags.temperature,
        flags.last_position,
    )
    pieces = Pieces(flags.decode_columns, flags.decode_overlap)
    prefix = None
    if flags.prefix_image:
        picture = prefix_picture(flags.prefix_image, tokenizer, flags.prefix_side)
        given = prefix_columns(picture, tokenizer, flags.prefix_side)
        if len(given) >= columns:
            raise UserError(
                f"--token_num: found {columns}, but {flags.prefix_image} has {len(given)} columns "
                "already; expected more"
            )
        prefix = Prefix(picture, given, flags.prefix_side)
    return Recipe(columns, sampling, pieces, flags.labels, flags.seed, prefix)
