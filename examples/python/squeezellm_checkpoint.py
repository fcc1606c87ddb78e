#!/usr/bin/env python3
"""Turns the folder of `decant export --format squeezellm` into the one file that SqueezeLLM's own loader reads.

usage: squeezellm_checkpoint.py FOLDER OUT.pt
Needs torch and safetensors; holds the model in memory. The loader also takes quant_config.json from the folder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    state = {}
    for shard in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        state |= load_file(shard)
    for name in state:
        if name.startswith("sparse_threshold."):
            state[name] = int(state[name])  # the published checkpoints have plain integers
    torch.save(state, sys.argv[2])


if __name__ == "__main__":
    main()
