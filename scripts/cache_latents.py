"""Encode a data set once: posterior means to train the generator on.

    python scripts/cache_latents.py --config_path STAGE_TWO.yaml --cached_path latents.safetensors
    torchrun --nproc_per_node=8 scripts/cache_latents.py ...

Of each image the centre crop is encoded; where training would flip at random, both flips. The same
command goes on with what was stopped, on any number of processes; what is done lies in
<cached_path>.parts until then.
"""

from dataclasses import dataclass
from functools import partial
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
    config_path: str = setting(help="YAML file with the tokenizer, and maybe data")
    cached_path: str = setting("", "file to write, *.safetensors")
    batch_size: int = setting(64, "images of one process in one batch", min=1)

    def __post_init__(self) -> None:
        if Path(self.cached_path).suffix != ".safetensors":
            raise UserError(f"--cached_path: found {self.cached_path!r}, expected *.safetensors")


def main() -> None:
    parser = cli.new_parser(__doc__)
    cli.add_flags(parser, CacheConfig)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="over --config_path, by dotted key")
    flags = cli.parse(parser)
    given, overrides = cli.read(CacheConfig, flags), flags.overrides
    with distributed.launch(given.device) as process:
        load = partial(load_tokenizer, given.config_path, overrides)
        tokenizer = load_on_all(process, load)
        dataset = image_data(given, overrides, tokenizer, train=True, seed=0)
        made: object = [given.data_path, given.interpolation]
        if not given.data_path:
            node = OmegaConf.select(config.load(given.config_path, overrides), "data.params.train")
            made = OmegaConf.to_container(node, resolve=True)
        header = describe_tokens(tokenizer, process, dataset.class_names, made)

        def means(images: Tensor) -> Tensor:
            with full_float32():
                return tokenizer.encode(images).mean

        path = Path(given.cached_path)
        batches = given.batch_size, min(given.num_workers, cores())
        fresh = cache_latents(dataset, means, header, process, *batches, path)
        if process.is_main:
            flips = " x 2 flips" if getattr(dataset, "flip", False) else ""
            print(f"{len(dataset)} images{flips}: {path}{'' if fresh else ' (there already)'}")


if __name__ == "__main__":
    run_cli(main)
