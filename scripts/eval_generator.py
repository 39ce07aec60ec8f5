"""Generate images with a trained generator, of any width, and measure them.

    python scripts/eval_generator.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --output_dir runs/samples --num_images 90 --cfg 4
    torchrun --nproc_per_node=8 scripts/eval_generator.py ... --num_images 50000 --metrics \\
        --reference VIRTUAL_imagenet256_labeled.npz

Image k goes to OUTPUT/images/k.png. It is the same file for any number of processes, and the same
image, to rounding, for any batch size. A run that was stopped goes on where it was. With --metrics,
OUTPUT/metrics.json says how good the images are, and all that this depends on. Several values of
--cfg go to OUTPUT/cfg_<value>, and their metrics to OUTPUT/sweep.json and sweep.png.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from common import cli, distributed, provenance
from common.checkpoint import weights_hash
from common.config import setting, structured
from common.errors import UserError, run_cli
from common.io import claim_folder, write_json
from common.metrics.report import MetricConfig, open_evaluator, table
from common.plots import Panel, save_curves
from generator import generate
from generator.checkpoints import load_generator
from generator.config import IGNORED, SIZES, GeneratorConfig, TrainConfig
from generator.inference import PRECISIONS, prepare
from generator.sampling import COLUMNS, Columns, SampleConfig
from generator.train import RunConfig
from tokenizer.checkpoints import load_on_all, load_tokenizer

TRAINING = (RunConfig, TrainConfig)  # whose flags are taken, and ignored

_models, _images, _speed = (partial(setting, group=g) for g in ("models", "images", "speed"))


@dataclass(frozen=True)
class EvalConfig:
    resume: str = _models(help="folder of the generator's checkpoint")
    config_path: str = _models(help="YAML file with the tokenizer (model.params.ckpt_path)")
    output_dir: str = _images(help="folder for images and settings")
    ckpt: str = _models("checkpoint-last.pth", "name of the checkpoint in --resume")
    raw: bool = _models(False, "raw weights rather than their average")
    vae_norm: float | None = _models(None, "scale of the tokens (default: as trained)", above=0)
    num_images: int = _images(64, "number of images", min=1)
    labels: str = _images(
        "balanced", "classes: balanced, random, or names and numbers taken in turn: 3,7-9,sea"
    )
    prefix_image: str | None = _images(None, "image that all images continue")
    prefix_side: str = _images("right", "side on which they do", choices=("right", "left"))
    cfg: tuple[float, ...] = setting((1.0,), "guidance scale, or several", group="sampling")
    eval_bsz: int = _speed(64, "images of one batch of a process", min=1)
    device: str = _speed("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _speed("fp32", "precision of matrix products", choices=PRECISIONS)
    compile: bool = _speed(False, "compile the flow head, on GPUs into a CUDA graph")


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--config", metavar="YAML", help="any of these flags; the command line wins")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--model", choices=SIZES, help="named sizes of a released checkpoint")
    cli.add_flags(parser, GeneratorConfig)
    cli.add_flags(parser, EvalConfig)
    cli.add_flags(parser, SampleConfig, {f.name for f in fields(SampleConfig)} - {"cfg"})
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    cli.add_flags(parser, MetricConfig)
    training = [f.name + "=" * (f.type is not bool) for s in TRAINING for f in fields(s)]
    known = parser._option_string_actions
    ignored = [n for n in (*IGNORED, *training) if f"--{n.rstrip('=')}" not in known]
    cli.accept_ignored(parser, ignored)

    flags = cli.parse(parser)
    given, metrics = cli.read(EvalConfig, flags), cli.read(MetricConfig, flags)
    del flags.cfg  # which may be several; one image has one
    sampled = cli.given(SampleConfig, flags)
    sizes = SIZES.get(flags.model, {}) | cli.given(GeneratorConfig, flags)
    if metrics.metrics is None and metrics.reference:
        raise UserError("--reference: given without --metrics")
    output = Path(given.output_dir)
    with distributed.launch(given.device) as process:
        source = Path(given.resume) / given.ckpt
        loaded = load_generator(source, sizes, not given.raw, process.device, given.vae_norm)
        scale = loaded.token_scale
        tokenizer = load_on_all(
            process, lambda: load_tokenizer(given.config_path, flags.overrides, scale)
        )
        fingerprint = distributed.broadcast_object(process.is_main and tokenizer.fingerprint)
        loaded.check_tokenizer(fingerprint)
        config = structured(SampleConfig, {"columns": loaded.columns or COLUMNS, **sampled}, "--")
        chosen = given.labels, loaded.class_names, config.seed, given.num_images
        labels = generate.image_labels(*chosen)
        settings = {
            "generator": process.is_main and loaded.fingerprint,
            "tokenizer": fingerprint,
            "token_scale": float(tokenizer.token_scale),
            "precision": given.precision,
            "labels": given.labels,
        }
        prefix: Columns = {}
        if given.prefix_image:
            image = generate.read_prefix(given.prefix_image, tokenizer, given.prefix_side)
            settings["prefix"] = [weights_hash({"image": image}), given.prefix_side]
            image = image.to(process.device)
            prefix = generate.encode_prefix(image, tokenizer, given.prefix_side)
        if len(prefix) >= config.columns:
            expected = f"more than the {len(prefix)} columns of {given.prefix_image}"
            raise UserError(f"--token_num: found {config.columns}, expected {expected}")
        evaluator = None
        if metrics.metrics is not None:
            evaluator = open_evaluator(metrics, process)
            evaluator.check(str(output), given.num_images)
        prepare(loaded.model, given.precision, given.compile)

        points: dict[float, dict[str, Any]] = {}
        for cfg in given.cfg:
            folder = output if len(given.cfg) == 1 else output / f"cfg_{cfg:g}"
            images, point = folder / "images", replace(config, cfg=cfg)
            made = {**settings, **asdict(point)}
            if process.is_main:
                claim_folder(folder, made)
            distributed.barrier()
            start = perf_counter()
            what = (images, labels, given.eval_bsz, loaded, tokenizer, point, process)
            count = generate.generate_folder(*what, prefix, given.prefix_side == "left")
            seconds = perf_counter() - start
            if process.is_main:
                print(f"images: {images}")
            files = [generate.image_path(images, k) for k in range(given.num_images)]
            record = evaluator.evaluate(files) if evaluator else None
            if record is not None:  # on the first process
                speed = {"seconds": seconds, "images_per_second": count / seconds}
                sampling = {**made, "batch_size": given.eval_bsz, "sampled": count, **speed}
                record |= {"sampling": sampling, "conditions": provenance.describe()}
                write_json(folder / "metrics.json", record)
                print(table(record))
                points[cfg] = record["figures"]
        if len(points) > 1:
            write_json(output / "sweep.json", points)
            names = [n for n in points[given.cfg[0]] if not n.endswith(("_std", "_mean"))]
            over = {n: {n: {cfg: points[cfg][n] for cfg in sorted(points)}} for n in names}
            panels = [Panel(n.replace("_", " "), over[n], "guidance") for n in names]
            save_curves(output / "sweep.png", panels)


if __name__ == "__main__":
    run_cli(main)
