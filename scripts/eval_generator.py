"""Generate images with a trained generator, of any width, and measure them.

    python scripts/eval_generator.py --resume runs/generator --config_path TOKENIZER.yaml \\
        --output_dir runs/samples --num_images 90 --cfg 4
    torchrun --nproc_per_node=8 scripts/eval_generator.py ... --num_images 50000 --metrics \\
        --reference VIRTUAL_imagenet256_labeled.npz

Image k goes to OUTPUT/images/k.png. It is the same file for any number of processes, and the same
image, to rounding, for any batch size. A run that was stopped goes on where it was. With --metrics,
OUTPUT/metrics.json says how good the images are, and all that this depends on.
"""

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from common import cli, distributed, provenance
from common.checkpoint import weights_hash
from common.config import setting, structured
from common.errors import UserError, run_cli
from common.io import claim_folder, write_json
from common.metrics.report import MetricConfig, open_evaluator, table
from generator import generate
from generator.checkpoints import load_generator
from generator.config import IGNORED, SIZES, GeneratorConfig, TrainConfig
from generator.inference import PRECISIONS, prepare
from generator.sampling import Columns, SampleConfig
from generator.train import RunConfig
from tokenizer.checkpoints import load_on_all, load_tokenizer


@dataclass(frozen=True)
class EvalConfig:
    resume: str = setting(help="folder of the generator's checkpoint")
    config_path: str = setting(help="YAML file with the tokenizer (model.params.ckpt_path)")
    output_dir: str = setting(help="folder for images and settings")
    ckpt: str = setting("checkpoint-last.pth", "name of the checkpoint in --resume")
    raw: bool = setting(False, "raw weights rather than their average")
    vae_norm: float | None = setting(None, "scale of the tokens (default: as trained)", above=0)
    num_images: int = setting(64, "number of images", min=1)
    labels: str = setting("balanced", "classes: balanced, random, or taken in turn: 3,7-9")
    prefix_image: str | None = setting(None, "image that all images continue")
    prefix_side: str = setting("right", "side on which they do", choices=("right", "left"))
    eval_bsz: int = setting(64, "images of one batch of a process", min=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = setting("fp32", "precision of matrix products", choices=PRECISIONS)
    compile: bool = setting(False, "compile the flow head, on GPUs into a CUDA graph")


def main() -> None:
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--config", metavar="YAML", help="any of these flags; the command line wins")
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    add("--model", choices=SIZES, help="named sizes of a released checkpoint")
    for schema in (GeneratorConfig, EvalConfig, SampleConfig, MetricConfig):
        cli.add_flags(parser, schema)
    add("--float32", dest="precision", action="store_const", const="fp32", help="--precision fp32")
    training = [*fields(RunConfig), *fields(TrainConfig)]  # whose flags are taken, and ignored
    training = [f for f in training if f"--{f.name}" not in parser._option_string_actions]
    names = [f.name if f.type is bool else f"{f.name}=" for f in training]
    cli.accept_ignored(parser, [*IGNORED, *names])

    flags = cli.parse(parser)
    given, metrics = cli.read(EvalConfig, flags), cli.read(MetricConfig, flags)
    sampled = cli.given(SampleConfig, flags)
    sizes = SIZES.get(flags.model, {}) | cli.given(GeneratorConfig, flags)
    if metrics.reference and not metrics.metrics:
        raise UserError("--reference: given without --metrics")
    output, folder = Path(given.output_dir), Path(given.output_dir) / "images"
    with distributed.launch(given.device) as process:
        source, ema = Path(given.resume) / given.ckpt, not given.raw
        loaded = load_generator(source, sizes, ema, process.device, given.vae_norm)
        load = partial(load_tokenizer, given.config_path, flags.overrides, loaded.token_scale)
        tokenizer = load_on_all(process, load)
        fingerprint = distributed.broadcast_object(process.is_main and tokenizer.fingerprint)
        loaded.check_tokenizer(fingerprint)
        config = structured(SampleConfig, {"columns": loaded.columns, **sampled}, "--")
        loaded.model.layout.check(config.columns, "--token_num")
        if given.prefix_image:
            loaded.model.layout.check("a part", "--prefix_image")
        classes, side = len(loaded.class_names), given.prefix_side
        labels = generate.image_labels(given.labels, classes, config.seed, given.num_images)
        settings = {
            "generator": process.is_main and weights_hash(loaded.model.state_dict()),
            "tokenizer": fingerprint,
            "token_scale": float(tokenizer.token_scale),
            "precision": given.precision,
            "labels": given.labels,
        }
        prefix: Columns = {}
        if given.prefix_image:
            image = generate.read_prefix(given.prefix_image, tokenizer, side)
            settings["prefix"] = [weights_hash({"image": image}), side]
            prefix = generate.encode_prefix(image, tokenizer)
        if len(prefix) >= config.columns:
            expected = f"more than the {len(prefix)} columns of {given.prefix_image}"
            raise UserError(f"--token_num: found {config.columns}, expected {expected}")
        evaluator = open_evaluator(metrics, process) if metrics.metrics else None
        prepare(loaded.model, given.precision, given.compile)

        settings |= asdict(config)
        if process.is_main:
            claim_folder(output, settings)
        distributed.barrier()
        count = generate.generate_folder(
            folder, labels, given.eval_bsz, loaded, tokenizer, config, process, prefix, side
        )
        if process.is_main:
            print(f"images: {folder}")
        files = [generate.image_path(folder, k) for k in range(given.num_images)]
        record = evaluator.evaluate(files) if evaluator else None
        if record is not None:  # on the first process
            sampling = {**settings, "batch_size": given.eval_bsz, "sampled": count}
            record |= {"sampling": sampling, "conditions": provenance.describe()}
            write_json(output / "metrics.json", record)
            print(table(record))


if __name__ == "__main__":
    run_cli(main)
