#!/usr/bin/env python3
"""Loads a decant container into transformers: h5py and NumPy read it, PyTorch runs it. Nothing of decant is needed.

usage: load_into_transformers.py M.h5 [TOKENIZER_FOLDER PROMPT]
Prints the model; with a prompt, what it goes on with. Weights are decoded whole: memory is that of the original model.
Needs h5py, numpy, torch and transformers.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.append(str(Path(__file__).resolve().parents[1]))
from read_container import read_layer


def read_tensor(dataset: h5py.Dataset) -> torch.Tensor:
    """A tensor that was not quantized; BF16 is stored as its 16 bits."""
    values = dataset[:]
    if dataset.attrs.get("element") == b"BF16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def load(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with h5py.File(path) as container:
        config = json.loads(container["config"][:].tobytes())
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
        for name, parameter in model.named_parameters():
            layer = name.removesuffix(".weight")
            if name in container:
                weight = read_tensor(container[name])
            else:
                weight = torch.from_numpy(read_layer(container, layer))
            with torch.no_grad():
                parameter.copy_(weight)
    return model.eval()


def main() -> None:
    if len(sys.argv) not in (2, 4) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    model = load(sys.argv[1])
    print(model)
    if len(sys.argv) == 4:
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
        tokens = tokenizer(sys.argv[3], return_tensors="pt")
        print(tokenizer.decode(model.generate(**tokens, max_new_tokens=40, do_sample=False)[0]))


if __name__ == "__main__":
    main()
