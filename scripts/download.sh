#!/usr/bin/env bash
# Fetch all weights: the networks of the losses and metrics, and the authors' models.
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec python scripts/download_weights.py "$@"
