"""Golden numbers for decant's LLaMA forward, backward and Fisher sums, from PyTorch and transformers.

    pip install numpy torch transformers safetensors
    python3 tests/reference/make_golden.py [--output DIRECTORY]

The committed files were made with Python 3.11.7, numpy 2.4.6, torch 2.11.0 (CPU, one thread), transformers 5.23.0
and safetensors 0.8.0. The models' weights and tokens depend on numpy's seeded generator alone; the golden numbers may
differ in their last bit on another processor.

Each model is an ordinary Hugging Face folder with seeded random weights, small but shaped like the real ones:

    llama_mha            multi-head, untied head, F32, a config.json as old models have it (no num_key_value_heads)
    llama_gqa_tied       grouped-query, tied embeddings, F16 in two shards, rope_theta inside "rope_parameters"
    llama_bf16_headdim   multi-query, untied head, BF16, a head_dim that is not hidden_size / heads

and in the same folder:

    tokens.npy                  int32 [5, 37]
    golden/model.safetensors    float32, a folder of its own so that whatever reads models reads it too;
                                NAME is e.g. model.layers.0.self_attn.q_proj
        logits                 [5, 37, vocabulary]
        loss                   [5]: each sequence's mean cross-entropy over its 36 next tokens
        hidden.K               [37, hidden], sequence 0: K = 0 is the embedding, K = 1, 2, ... the output of block K - 1
                               (the last one before the final norm)
        gradient.NAME          [out, in], sequence 0: d loss / d weight
        fisher_sequence.NAME   [out, in]: sum over sequences of (d loss / d weight)^2
        fisher_token.NAME      [out, in]: sum over sequences of (dY * dY)' (X * X), X [tokens, in] the layer's input and
                               dY [tokens, out] the gradient of the sequence's loss with respect to its output

The stored weights are upcast and everything is computed in float64. transformers computes three things in float32
whatever the model's type (RMSNorm, the rotary angles, the softmax); these are replaced by the same formulas in float64,
and the untouched model in float32 is run beside it to show that both are the same function.
"""

import argparse
import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from transformers.models.llama import LlamaForCausalLM, modeling_llama

SEQUENCES = 5
LENGTH = 37

# The untouched float32 model may differ from the float64 one by this much, relative to the largest value.
FLOAT32_TOLERANCE = 2e-5

LINEAR_NAMES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A small model: its config.json and how its weights are stored."""

    name: str
    seed: int
    dtype: torch.dtype
    shards: int
    config: dict[str, Any]


def llama_config(**values: Any) -> dict[str, Any]:
    """The parts of config.json that all models share, then the given values."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | values


MODELS = (
    Model("llama_mha", seed=1, dtype=torch.float32, shards=1, config=llama_config(
        vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        rms_norm_eps=1e-5, rope_theta=250000.0, tie_word_embeddings=False, torch_dtype="float32")),
    Model("llama_gqa_tied", seed=2, dtype=torch.float16, shards=2, config=llama_config(
        vocab_size=112, hidden_size=48, intermediate_size=56, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6, tie_word_embeddings=True, dtype="float16",
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"})),
    Model("llama_bf16_headdim", seed=3, dtype=torch.bfloat16, shards=1, config=llama_config(
        vocab_size=128, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
        tie_word_embeddings=False, torch_dtype="bfloat16")),
)  # fmt: skip


def make_weights(model: Model, generator: np.random.Generator) -> dict[str, Tensor]:
    """Random weights that keep activations, attention scores and logits near 1, so that no gradient is tiny."""
    c = model.config
    hidden, intermediate, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head_dim = c.get("head_dim", hidden // heads)
    queries, keys = heads * head_dim, c.get("num_key_value_heads", heads) * head_dim

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal((rows, columns)) / np.sqrt(columns)).to(model.dtype)

    def norm() -> Tensor:
        return torch.from_numpy(1 + 0.1 * generator.standard_normal(hidden)).to(model.dtype)

    weights = {"model.embed_tokens.weight": matrix(c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        weights[block + "input_layernorm.weight"] = norm()
        weights[block + "self_attn.q_proj.weight"] = matrix(queries, hidden)
        weights[block + "self_attn.k_proj.weight"] = matrix(keys, hidden)
        weights[block + "self_attn.v_proj.weight"] = matrix(keys, hidden)
        weights[block + "self_attn.o_proj.weight"] = matrix(hidden, queries)
        weights[block + "post_attention_layernorm.weight"] = norm()
        weights[block + "mlp.gate_proj.weight"] = matrix(intermediate, hidden)
        weights[block + "mlp.up_proj.weight"] = matrix(intermediate, hidden)
        weights[block + "mlp.down_proj.weight"] = matrix(hidden, intermediate)
    weights["model.norm.weight"] = norm()
    if not c["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(c["vocab_size"], hidden)
    return weights


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))


def write_model(model: Model, weights: dict[str, Tensor], folder: Path) -> None:
    """config.json and model.safetensors, or its shards with their index, as transformers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2, sort_keys=True) + "\n")
    if model.shards == 1:
        write_tensors(folder / "model.safetensors", weights)
        return
    # Cut by bytes in the order of the names, so that both files hold a part of one block.
    total_size = sum(tensor.nbytes for tensor in weights.values())
    weight_map: dict[str, str] = {}
    seen = 0
    for name, tensor in sorted(weights.items()):
        shard = seen * model.shards // total_size
        weight_map[name] = f"model-{shard + 1:05d}-of-{model.shards:05d}.safetensors"
        seen += tensor.nbytes
    for file in sorted(set(weight_map.values())):
        write_tensors(folder / file, {name: weights[name] for name in weights if weight_map[name] == file})
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def rms_norm_float64(self: modeling_llama.LlamaRMSNorm, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_float64(self: modeling_llama.LlamaRotaryEmbedding, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    c: Any = self.config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = position_ids[..., None].double() * c.rope_parameters["rope_theta"] ** -exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def attention_float64(
    module: modeling_llama.LlamaAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    key = modeling_llama.repeat_kv(key, module.num_key_value_groups)
    value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling
    length = scores.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    probabilities = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


@contextlib.contextmanager
def no_float32_inside() -> Iterator[None]:
    """Replace what transformers computes in float32 whatever the model's type."""
    with (
        mock.patch.object(modeling_llama.LlamaRMSNorm, "forward", rms_norm_float64),
        mock.patch.object(modeling_llama.LlamaRotaryEmbedding, "forward", rotary_float64),
        mock.patch.object(modeling_llama, "eager_attention_forward", attention_float64),
    ):
        yield


class Recorder:
    """Keeps the input and the output's gradient of the blocks' linear layers, and the activations between blocks."""

    def __init__(self, llama: LlamaForCausalLM, matrices: str = "") -> None:
        """Watches the linear layers in whose names the pattern is found."""
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.hidden: list[Tensor] = []
        self.linears = {
            name: module
            for name, module in llama.named_modules()
            if name.endswith(LINEAR_NAMES) and re.search(matrices, name)
        }
        for name, module in self.linears.items():
            module.register_forward_hook(self._keep_linear(name))
        for module in (llama.model.embed_tokens, *llama.model.layers):
            module.register_forward_hook(self._keep_hidden)

    def _keep_linear(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            self.inputs[name], self.outputs[name] = inputs[0].detach()[0], output

        return hook

    def _keep_hidden(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.hidden.append(output.detach()[0])

    def input_and_output_gradient(self, name: str) -> tuple[Tensor, Tensor]:
        """X [tokens, in] and dY [tokens, out] of the sequence that went through last."""
        gradient = self.outputs[name].grad
        assert gradient is not None
        return self.inputs[name], gradient[0]

    def fisher_terms(self, name: str) -> dict[str, Tensor]:
        """What the sequence that went through last adds to the two Fisher sums, in float64."""
        x, dy = (part.double() for part in self.input_and_output_gradient(name))
        gradient = self.linears[name].weight.grad
        return {
            f"fisher_sequence.{name}": gradient.double().square(),
            f"fisher_token.{name}": dy.square().T @ x.square(),
        }


def load(folder: Path, dtype: torch.dtype, attention: str = "eager") -> LlamaForCausalLM:
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return llama.eval()


def mean_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[0, :-1], tokens[1:])


def compute(llama: LlamaForCausalLM, tokens: Tensor) -> dict[str, Tensor]:
    """All golden numbers, the model in its own precision; sequences go through one at a time."""
    recorder = Recorder(llama)
    result: dict[str, Tensor] = {}
    logits, losses = [], []
    for index, sequence in enumerate(tokens):
        llama.zero_grad()
        recorder.hidden.clear()
        output = llama(input_ids=sequence[None], use_cache=False).logits
        loss = mean_loss(output, sequence)
        loss.backward()
        logits.append(output.detach()[0])
        losses.append(loss.detach())
        if index == 0:
            result |= {f"hidden.{k}": hidden for k, hidden in enumerate(recorder.hidden)}
        for name, linear in recorder.linears.items():
            # The hooks see what autograd sees: the gradient is dY' X.
            x, dy = recorder.input_and_output_gradient(name)
            torch.testing.assert_close(dy.T @ x, linear.weight.grad, rtol=1e-4, atol=1e-6)
            if index == 0:
                result[f"gradient.{name}"] = linear.weight.grad.clone()
            for key, term in recorder.fisher_terms(name).items():
                result[key] = result[key] + term if key in result else term
    return result | {"logits": torch.stack(logits), "loss": torch.stack(losses)}


def largest_relative_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    assert actual.keys() == expected.keys()
    return max(
        (float((actual[name].double() - value).abs().max() / value.abs().max()), name)
        for name, value in expected.items()
    )


def make(model: Model, folder: Path) -> None:
    generator = np.random.default_rng(model.seed)
    write_model(model, make_weights(model, generator), folder)
    tokens = generator.integers(model.config["vocab_size"], size=(SEQUENCES, LENGTH), dtype=np.int32)
    np.save(folder / "tokens.npy", tokens)

    token_tensor = torch.from_numpy(tokens).long()
    with no_float32_inside():
        golden = compute(load(folder, torch.float64), token_tensor)
    difference, worst = largest_relative_difference(compute(load(folder, torch.float32), token_tensor), golden)
    if difference > FLOAT32_TOLERANCE:
        raise SystemExit(f"{model.name}: {worst} differs by {difference:.1e} between float32 and float64")
    (folder / "golden").mkdir(exist_ok=True)
    stored = {name: value.float().contiguous() for name, value in golden.items()}
    write_tensors(folder / "golden" / "model.safetensors", stored)

    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    losses = " ".join(f"{loss:.9f}" for loss in golden["loss"].tolist())
    print(
        f"{model.name}: {size / 1e6:.2f} MB, loss {losses}, logits std {golden['logits'].std():.3f}, "
        f"float32 differs by at most {difference:.1e} ({worst})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write small random LLaMA models and their golden numbers.")
    beside = Path(__file__).resolve().parent
    parser.add_argument("--output", type=Path, default=beside, help="default: beside this file")
    output: Path = parser.parse_args().output

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for model in MODELS:
        make(model, output / model.name)


if __name__ == "__main__":
    main()
