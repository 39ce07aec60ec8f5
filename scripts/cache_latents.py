"""Encode a data set once: posterior means to train the generator on.

    python scripts/cache_latents.py --config_path STAGE_TWO.yaml --cached_path latents.safetensors
    torchrun --nproc_per_node=8 scripts/cache_latents.py ...

Of each image the centre crop is encoded; where training would flip at random, both flips. The same
command goes on with what was stopped, on any number of processes; what is done lies in
<cached_path>.parts until then.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from common import cli, config, distributed
from common.config import setting
from common.data.latents import cache_latents
from common.errors import UserError, run_cli
from common.precision import full_float32
from common.provenance import cores
from generator.data import ImageConfig, describe_tokens, image_data
from tokenizer.checkpoints import load_on_all, load_tokenizer


@dataclass(frozen=True)
class CacheConfig(ImageConfig):
    cached_path: str = setting("", "file to write, *.safetensors")
    batch_size: int = setting(64, "images of one process in one batch", min=1)
    num_workers: int = setting(10, "loader processes, no more than there are cores", min=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        if Path(self.cached_path).suffix != ".safetensors":
            raise UserError(f"--cached_path: found {self.cached_path!r}, expected *.safetensors")
        if not self.config_path:
            raise UserError("--config_path: not given; expected a YAML file with the tokenizer")


def main() -> None:
    parser = cli.new_parser(__doc__)
    cli.add_flags(parser, CacheConfig)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key"
    )
    flags = cli.parse(parser)
    given, overrides = cli.read(CacheConfig, flags), flags.overrides
    with distributed.launch(given.device) as process:
        tokenizer = load_on_all(
            process, lambda: load_tokenizer(given.config_path, overrides=overrides)
        )
        dataset = image_data(given, overrides, tokenizer, train=True, seed=0)
        made: object = [given.data_path, given.interpolation]
        if not given.data_path:
            node = OmegaConf.select(config.load(given.config_path, overrides), "data.params.train")
            made = OmegaConf.to_container(node, resolve=True)
        about = (
            describe_tokens(tokenizer, dataset.class_names, data=made) if process.is_main else None
        )
        header = distributed.broadcast_object(about)

        def means(images: Tensor) -> Tensor:
            with full_float32():
                return tokenizer.encode(images).mode()

        path = Path(given.cached_path)
        batches = given.batch_size, min(given.num_workers, cores())
        fresh = cache_latents(dataset, means, header, process, *batches, path)
        if process.is_main:
            flips = " x 2 flips" if getattr(dataset, "flip", False) else ""
            print(f"{len(dataset)} images{flips}: {path}{'' if fresh else ' (there already)'}")


if __name__ == "__main__":
    run_cli(main)
