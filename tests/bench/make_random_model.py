#!/usr/bin/env python3
"""Makes a Hugging Face folder with the shapes of a LLaMA model and seeded random weights, for timing.

usage: make_random_model.py [--shape tiny|small|7b|13b|30b|65b] [--layers N] [--dtype bfloat16|float16] [--sequences N]
                            [--length N] [--processes N] DIR
Writes config.json, one safetensors file a layer with an index, and calibration.npy / text.npy of random tokens. Needs
NumPy. A weight is drawn from the normal distribution's 65536 quantiles by 16 bits of a counter generator whose counter
is the weight's place, so any number of processes writes the same bytes; each takes pieces of tensors in turn.
"""

import argparse
import json
import multiprocessing
import os
import struct
from pathlib import Path
from statistics import NormalDist

import numpy as np

SHAPES = {  # hidden, intermediate, layers, heads, vocabulary
    "tiny": (256, 688, 4, 4, 32000),
    "small": (512, 1376, 8, 8, 2048),
    "7b": (4096, 11008, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 32000),
    "30b": (6656, 17920, 60, 52, 32000),
    "65b": (8192, 22016, 80, 64, 32000),
}
TYPES = {"bfloat16": "BF16", "float16": "F16"}
DEVIATION = 0.02
PIECE = 1 << 24  # weights that a process draws and writes at a time
AT_ONCE = 1 << 18  # of them, as many as stay in the cache


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


def as_16_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 to the bits of a 16-bit type, rounded to nearest, ties to even."""
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def normal_quantiles(dtype: str) -> np.ndarray:
    """[65536]: as many equally likely values of a normal distribution, as the bits of the type."""
    normal = NormalDist(0, DEVIATION)
    return as_16_bits(np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32), dtype)


def draw(table: np.ndarray, key: tuple[int, int], first: int, count: int) -> np.ndarray:
    """Weights [first, first + count) of the matrix that the key names; first is a multiple of 16."""
    generator = np.random.Philox(key=key, counter=first // 16)  # a count gives four numbers of 64 bits
    weights = np.empty(count, np.uint16)
    for at in range(0, count, AT_ONCE):
        length = min(AT_ONCE, count - at)
        numbers = generator.random_raw((length + 3) // 4)
        np.take(table, numbers.view(np.uint16)[:length], out=weights[at : at + length], mode="clip")
    return weights


def begin_shard(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> list[tuple]:
    """Writes a file's header; its pieces are (path, offset, tensor's place, is a matrix, first weight, weights)."""
    header, offset, pieces = {}, 0, []
    for tensor, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[tensor] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    for place, (tensor, shape) in enumerate(tensors.items()):
        begin, count = 8 + len(text) + header[tensor]["data_offsets"][0], int(np.prod(shape))
        for first in range(0, count, PIECE):
            pieces.append((path, begin + 2 * first, place, len(shape) > 1, first, min(PIECE, count - first)))
    return pieces


def write_piece(task: tuple) -> None:
    seed, (path, offset, place, is_matrix, first, count) = task
    if is_matrix:
        weights = draw(write_piece.quantiles, (seed, place), first, count)
    else:
        weights = np.full(count, write_piece.one, np.uint16)
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        left = memoryview(weights).cast("B")
        while left:
            left = left[file.write(left) :]


def prepare(dtype: str) -> None:
    """What every process keeps."""
    write_piece.quantiles = normal_quantiles(dtype)
    write_piece.one = as_16_bits(np.ones(1, np.float32), dtype)[0]


def make_config(shape: str, layers: int, dtype: str = "bfloat16") -> dict:
    hidden, intermediate, _, heads, vocabulary = SHAPES[shape]
    return {
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
        "torch_dtype": dtype,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--dtype", choices=TYPES, default="bfloat16")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    hidden, intermediate, layers, _, vocabulary = SHAPES[options.shape]
    layers = options.layers or layers
    options.directory.mkdir(parents=True, exist_ok=True)
    ends = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    shards = [("ends", ends)] + [(f"layer-{i}", block_tensors(hidden, intermediate, i)) for i in range(layers)]
    tasks = [
        (seed, piece)
        for seed, (stem, tensors) in enumerate(shards)
        for piece in begin_shard(options.directory / f"{stem}.safetensors", tensors, options.dtype)
    ]
    with multiprocessing.Pool(options.processes, prepare, (options.dtype,)) as pool:
        for _ in pool.imap_unordered(write_piece, tasks):
            pass
    index = {tensor: f"{stem}.safetensors" for stem, tensors in shards for tensor in tensors}
    (options.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = make_config(options.shape, layers, options.dtype)
    (options.directory / "config.json").write_text(json.dumps(config, indent=1))
    tokens = np.random.default_rng(1).integers(0, vocabulary, (options.sequences, options.length), dtype=np.int32)
    np.save(options.directory / "calibration.npy", tokens)
    np.save(options.directory / "text.npy", tokens[: max(1, options.sequences // 16)])


if __name__ == "__main__":
    main()
