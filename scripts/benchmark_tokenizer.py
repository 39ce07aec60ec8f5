"""Measure how fast stage one trains, what an update's time goes into, and what bounds it.

    python scripts/benchmark_tokenizer.py -b CONFIG.yaml [key=value ...] [--output FILE.json]

Takes the configs and overrides of train_tokenizer.py. All terms that the config has are active
from the first update on, whatever their start step. Whole updates are those of Lightning's own
loop on one process, the same pictures again and again. Their parts are measured afterwards, one by
one, waiting for the device around each:

* the autoencoder forward, and backward from given gradients of what it made;
* a frozen network: what the objective's terms take with it, less what they take with its output
  recorded, so that all its passes are in it, those for the adaptive weight too;
* the discriminator: likewise what its term, the adaptive weight and its update add;
* both optimizers (clipping included) and EMA.

The rest is what they leave of a whole update: Lightning's loop, pictures on their way to the
device, the last convolution's gradients for the adaptive weight, less what waiting for the device
costs the parts. It can be negative.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from common import config, distributed, environment, images, peak, seeding
from common.checkpoint import save_safetensors
from common.datamodule import DataModule
from common.errors import UserError, run_cli
from common.precision import uses_bf16
from common.pretrained import FILES
from common.records import write_json
from tokenizer.dino import DinoDiscriminator
from tokenizer.lightning import TokenizerModule
from tokenizer.objective import Objective, Reconstruction
from tokenizer.trainer import quieten
