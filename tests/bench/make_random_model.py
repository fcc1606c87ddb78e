#!/usr/bin/env python3
"""Makes a Hugging Face folder with the shapes of a LLaMA model and seeded random weights, for timing.

usage: make_random_model.py [--shape tiny|small|7b|13b|30b|65b] [--layers N] [--dtype bfloat16|float16] [--sequences N]
                            [--length N] DIR
Writes config.json, one safetensors file a layer with an index, and calibration.npy / text.npy of random tokens. Needs
NumPy and PyTorch. Weights are drawn on a GPU when there is one, several files at a time, so that gigabytes take seconds;
a file's seed is its place, so the same kind of device draws the same model.
"""

import argparse
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

SHAPES = {  # hidden, intermediate, layers, heads, vocabulary
    "tiny": (256, 688, 4, 4, 32000),
    "small": (512, 1376, 8, 8, 2048),
    "7b": (4096, 11008, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 32000),
    "30b": (6656, 17920, 60, 52, 32000),
    "65b": (8192, 22016, 80, 64, 32000),
}
TORCH_TYPES = {"bfloat16": (torch.bfloat16, "BF16"), "float16": (torch.float16, "F16")}
WRITERS = 8  # files written at a time; a GPU draws faster than one thread can write


def block_tensors(hidden: int, intermediate: int, layer: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{layer}."
    square = {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    return square | {
        f"{prefix}mlp.gate_proj.weight": (intermediate, hidden),
        f"{prefix}mlp.up_proj.weight": (intermediate, hidden),
        f"{prefix}mlp.down_proj.weight": (hidden, intermediate),
        f"{prefix}input_layernorm.weight": (hidden,),
        f"{prefix}post_attention_layernorm.weight": (hidden,),
    }


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    torch_type, name = TORCH_TYPES[dtype]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(seed)
    header, offset = {}, 0
    for tensor, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + offset)  # a full disk is an error here, no signal later
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        data = np.memmap(file, np.int16, "r+", 8 + len(text), offset // 2)
    at = 0
    for shape in tensors.values():
        values = torch.ones(shape, device=device)
        if len(shape) > 1:
            values = torch.randn(shape, generator=generator, device=device) * 0.02
        place = torch.from_numpy(data[at : at + values.numel()])
        place.copy_(values.to(torch_type).view(torch.int16).flatten())
        at += values.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    hidden, intermediate, layers, heads, vocabulary = SHAPES[options.shape]
    layers = options.layers or layers
    options.directory.mkdir(parents=True, exist_ok=True)
    ends = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    shards = [("ends", ends)] + [(f"layer-{i}", block_tensors(hidden, intermediate, i)) for i in range(layers)]
    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [
            pool.submit(write_shard, options.directory / f"{stem}.safetensors", tensors, options.dtype, seed)
            for seed, (stem, tensors) in enumerate(shards)
        ]
    for shard in writing:
        shard.result()
    index = {tensor: f"{stem}.safetensors" for stem, tensors in shards for tensor in tensors}
    (options.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": options.dtype,
    }
    (options.directory / "config.json").write_text(json.dumps(config, indent=1))
    tokens = np.random.default_rng(1).integers(0, vocabulary, (options.sequences, options.length), dtype=np.int32)
    np.save(options.directory / "calibration.npy", tokens)
    np.save(options.directory / "text.npy", tokens[: max(1, options.sequences // 16)])


if __name__ == "__main__":
    main()
