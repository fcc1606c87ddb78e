#!/usr/bin/env python3
"""Makes a Hugging Face folder with the shapes of a LLaMA model and seeded random weights, for timing.

usage: make_random_model.py [--shape 7b|13b|30b|65b] [--layers N] [--dtype bfloat16|float16] [--sequences N] [--length N] DIR
Writes config.json, one safetensors file a layer with an index, and calibration.npy / text.npy of random tokens. Needs
NumPy and PyTorch (on a GPU when there is one, so that gigabytes take seconds).
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import torch

SHAPES = {  # hidden, intermediate, layers, heads
    "tiny": (256, 688, 4, 4),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
    "30b": (6656, 17920, 60, 52),
    "65b": (8192, 22016, 80, 64),
}
VOCABULARY = 32000


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


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], dtype: torch.dtype, generator: torch.Generator) -> None:
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    header, offset = {}, 0
    for tensor, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, shape in tensors.items():
            if len(shape) == 1:
                values = torch.ones(shape, device=generator.device)
            else:
                values = torch.randn(shape, generator=generator, device=generator.device) * 0.02
            file.write(values.to(dtype).view(torch.int16).cpu().numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    hidden, intermediate, layers, heads = SHAPES[options.shape]
    layers = options.layers or layers
    dtype = getattr(torch, options.dtype)
    options.directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device="cuda" if torch.cuda.is_available() else "cpu").manual_seed(1)
    ends = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }
    shards = [("ends", ends)] + [(f"layer-{i}", block_tensors(hidden, intermediate, i)) for i in range(layers)]
    index = {}
    for stem, tensors in shards:
        write_shard(options.directory / f"{stem}.safetensors", tensors, dtype, generator)
        index |= {tensor: f"{stem}.safetensors" for tensor in tensors}
    (options.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": options.dtype,
    }
    (options.directory / "config.json").write_text(json.dumps(config, indent=1))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (options.sequences, options.length), dtype=np.int32)
    np.save(options.directory / "calibration.npy", tokens)
    np.save(options.directory / "text.npy", tokens[: max(1, options.sequences // 16)])


if __name__ == "__main__":
    main()
