"""Settings of all tests."""

from __future__ import annotations

import torch

# The models of the tests are small: threads cost more than they bring.
torch.set_num_threads(1)
