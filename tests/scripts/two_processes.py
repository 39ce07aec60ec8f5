"""One of two processes: the scripts that `calls.yaml` lists, one after the other.

Started by the fixture `together` in place of `torchrun`, which would load PyTorch anew for each.
"""

import os
import sys
from pathlib import Path

import torch
import yaml
from conftest import load_script

from common.data import latents

if __name__ == "__main__":
    torch.set_num_threads(1)
    latents.SHARD = 4  # so that each has some of so few images
    folder = Path(sys.argv[1])
    calls = yaml.safe_load((folder / "calls.yaml").read_text())
    for port, (script, flags) in zip(sys.argv[2:], sorted(calls.items()), strict=True):
        os.environ["MASTER_PORT"] = port
        sys.argv = [f"{script}.py", *flags]
        load_script(script).main()
