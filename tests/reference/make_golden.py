"""Golden numbers for each family's forward, backward and Fisher sums, from PyTorch and transformers.

    pip install numpy torch transformers safetensors
    python3 tests/reference/make_golden.py [--output DIRECTORY] [--only NAME]

The committed files were made with Python 3.11.7, numpy 2.4.6, torch 2.11.0 (CPU, one thread), transformers 5.23.0
and safetensors 0.8.0. The models' weights and tokens depend on numpy's seeded generator alone; the golden numbers may
differ in their last bit on another processor.

Each model is an ordinary Hugging Face folder with seeded random weights, small but shaped like the real ones:

    llama_mha            multi-head, untied head, F32, a config.json as old models have it (no num_key_value_heads)
    llama_gqa_tied       grouped-query, tied embeddings, F16 in two shards, rope_theta inside "rope_parameters"
    llama_bf16_headdim   multi-query, untied head, BF16, a head_dim that is not hidden_size / heads
    llama3_scaled        grouped-query, tied embeddings, BF16, rope_scaling "llama3" with pairs in all three of its bands
    llama_linear         multi-head, untied head, BF16, rope_scaling "linear" as Vicuna 1.5 16k has it
    mistral_window       grouped-query, untied head, BF16, a sliding window of 9 tokens
    qwen2_biases         grouped-query, tied embeddings, F32, biases on q, k and v, a sliding_window that is switched off
    qwen3_norms          grouped-query, untied head, BF16, norms of the heads of q and k, a head_dim of its own
    opt_before           norms before the halves of a block, learned positions, biases, ReLU, tied embeddings, F16
    opt_behind           as OPT-350m: norms behind, projections to a narrower embedding, no final norm, F32; a middle
                         that is narrower than the rest

and in the same folder:

    tokens.npy                  int32 [5, 37]
    golden/model.safetensors    float32, a folder of its own so that whatever reads models reads it too;
                                NAME is e.g. model.layers.0.self_attn.q_proj
        logits                 [5, 37, vocabulary]
        loss                   [5]: each sequence's mean cross-entropy over its 36 next tokens
        hidden.K               [37, hidden], sequence 0: K = 0 enters the first block, K = 1, 2, ... is the output of block K - 1
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
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

SEQUENCES = 5
LENGTH = 37

# The untouched float32 model may differ from the float64 one by this much, relative to the largest value.
FLOAT32_TOLERANCE = 2e-5

LINEAR_NAMES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "self_attn.out_proj", "fc1", "fc2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A small model: its config.json and how its weights are stored."""

    name: str
    seed: int
    dtype: torch.dtype
    shards: int
    config: dict[str, Any]


def class_prefix(model_type: str) -> str:
    return "OPT" if model_type == "opt" else model_type.capitalize()


def architecture(model_type: str) -> str:
    return f"{class_prefix(model_type)}ForCausalLM"


def llama_config(**values: Any) -> dict[str, Any]:
    """The parts of config.json that all LLaMA models share, then the given values."""
    return family_config("llama", attention_bias=False, mlp_bias=False, **values)


def family_config(model_type: str, **values: Any) -> dict[str, Any]:
    """The parts of config.json that all models share, then the given values."""
    return {
        "architectures": [architecture(model_type)],
        "model_type": model_type,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | values


def opt_config(**values: Any) -> dict[str, Any]:
    """The parts of config.json that all OPT models share, then the given values."""
    return {
        "architectures": [architecture("opt")],
        "model_type": "opt",
        "activation_function": "relu",
        "bos_token_id": 2,
        "dropout": 0.1,
        "eos_token_id": 2,
        "max_position_embeddings": 96,
        "pad_token_id": 1,
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
# What other families and later models of this one have besides, one model each.
FAMILY_MODELS = (
    Model("llama3_scaled", seed=4, dtype=torch.bfloat16, shards=1, config=llama_config(
        vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=True,
        torch_dtype="bfloat16", rope_scaling={
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_type": "llama3"})),
    Model("llama_linear", seed=8, dtype=torch.bfloat16, shards=1, config=llama_config(
        vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, torch_dtype="bfloat16",
        rope_scaling={"factor": 4.0, "type": "linear"})),
    Model("mistral_window", seed=5, dtype=torch.bfloat16, shards=1, config=family_config(
        "mistral", vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=9, tie_word_embeddings=False,
        torch_dtype="bfloat16")),
    Model("qwen2_biases", seed=6, dtype=torch.float32, shards=1, config=family_config(
        "qwen2", vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=9, use_sliding_window=False,
        max_window_layers=1, tie_word_embeddings=True, torch_dtype="float32")),
    Model("qwen3_norms", seed=7, dtype=torch.bfloat16, shards=1, config=family_config(
        "qwen3", vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, attention_bias=False, rms_norm_eps=1e-6, rope_theta=1000000.0,
        rope_scaling=None, sliding_window=None, use_sliding_window=False, max_window_layers=2,
        tie_word_embeddings=False, torch_dtype="bfloat16")),
    Model("opt_before", seed=9, dtype=torch.float16, shards=1, config=opt_config(
        vocab_size=80, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32,
        do_layer_norm_before=True, torch_dtype="float16")),
    Model("opt_behind", seed=10, dtype=torch.float32, shards=1, config=opt_config(
        vocab_size=80, hidden_size=36, ffn_dim=28, num_hidden_layers=2, num_attention_heads=3, word_embed_proj_dim=20,
        do_layer_norm_before=False, torch_dtype="float32")),
)  # fmt: skip


def make_weights(model: Model, generator: np.random.Generator) -> dict[str, Tensor]:
    """Random weights that keep activations, attention scores and logits near 1, so that no gradient is tiny."""
    c = model.config
    hidden, intermediate, heads = c["hidden_size"], c.get("intermediate_size"), c["num_attention_heads"]
    head_dim = c.get("head_dim", hidden // heads)
    queries, keys = heads * head_dim, c.get("num_key_value_heads", heads) * head_dim

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal((rows, columns)) / np.sqrt(columns)).to(model.dtype)

    def norm(length: int = hidden) -> Tensor:
        return torch.from_numpy(1 + 0.1 * generator.standard_normal(length)).to(model.dtype)

    def bias(length: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal(length)).to(model.dtype)

    if c["model_type"] == "opt":
        return make_opt_weights(c, matrix, norm, bias)
    weights = {"model.embed_tokens.weight": matrix(c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        weights[block + "input_layernorm.weight"] = norm()
        weights[block + "self_attn.q_proj.weight"] = matrix(queries, hidden)
        weights[block + "self_attn.k_proj.weight"] = matrix(keys, hidden)
        weights[block + "self_attn.v_proj.weight"] = matrix(keys, hidden)
        if c["model_type"] == "qwen2":
            weights[block + "self_attn.q_proj.bias"] = bias(queries)
            weights[block + "self_attn.k_proj.bias"] = bias(keys)
            weights[block + "self_attn.v_proj.bias"] = bias(keys)
        if c["model_type"] == "qwen3":
            weights[block + "self_attn.q_norm.weight"] = norm(head_dim)
            weights[block + "self_attn.k_norm.weight"] = norm(head_dim)
        weights[block + "self_attn.o_proj.weight"] = matrix(hidden, queries)
        weights[block + "post_attention_layernorm.weight"] = norm()
        weights[block + "mlp.gate_proj.weight"] = matrix(intermediate, hidden)
        weights[block + "mlp.up_proj.weight"] = matrix(intermediate, hidden)
        weights[block + "mlp.down_proj.weight"] = matrix(hidden, intermediate)
    weights["model.norm.weight"] = norm()
    if not c["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(c["vocab_size"], hidden)
    return weights


def make_opt_weights(
    c: dict[str, Any],
    matrix: Callable[[int, int], Tensor],
    norm: Callable[[], Tensor],
    bias: Callable[[int], Tensor],
) -> dict[str, Tensor]:
    hidden, middle, width = c["hidden_size"], c["ffn_dim"], c["word_embed_proj_dim"]
    before = c["do_layer_norm_before"]
    weights = {
        "model.decoder.embed_tokens.weight": matrix(c["vocab_size"], width),
        "model.decoder.embed_positions.weight": matrix(c["max_position_embeddings"] + 2, hidden),
    }
    if width != hidden:
        weights["model.decoder.project_in.weight"] = matrix(hidden, width)
        weights["model.decoder.project_out.weight"] = matrix(width, hidden)
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    shapes |= {"fc1": (middle, hidden), "fc2": (hidden, middle)}
    for layer in range(c["num_hidden_layers"]):
        block = f"model.decoder.layers.{layer}."
        for name, (rows, columns) in shapes.items():
            weights[f"{block}{name}.weight"] = matrix(rows, columns)
            weights[f"{block}{name}.bias"] = 0.3 * bias(rows)  # all layers have one: larger ones drown the rest
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            weights[f"{block}{name}.weight"] = norm()
            weights[f"{block}{name}.bias"] = 0.3 * bias(hidden)
    if before:
        weights["model.decoder.final_layer_norm.weight"] = norm()
        weights["model.decoder.final_layer_norm.bias"] = 0.3 * bias(hidden)
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


def modeling_of(model_type: str) -> ModuleType:
    return importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")


def rms_norm_float64(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def frequencies_float64(c: Any) -> Tensor:
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters
    frequencies = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    assert rope["rope_type"] == "llama3"
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    waves = rope["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
    smooth = ((waves - low) / (high - low)).clamp(0, 1)
    bands = {"slow": (waves < low).sum(), "middle": ((waves >= low) & (waves <= high)).sum(), "fast": (waves > high).sum()}
    assert all(bands.values()), bands
    return frequencies * (smooth + (1 - smooth) / factor)


def rotary_float64(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].double() * frequencies_float64(self.config)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def attention_float64(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    groups = getattr(module, "num_key_value_groups", 1)  # OPT has none
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    length = scores.shape[-1]
    ones = torch.ones(length, length, dtype=torch.bool)
    unseen = ones.triu(1) if sliding_window is None else ones.triu(1) | ones.tril(-sliding_window)
    probabilities = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


@contextlib.contextmanager
def no_float32_inside(model_type: str = "llama") -> Iterator[None]:
    """Replace what transformers computes in float32 whatever the model's type."""
    modeling, family = modeling_of(model_type), class_prefix(model_type)
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(modeling, "eager_attention_forward", attention_float64))
        for name, forward in (("RMSNorm", rms_norm_float64), ("RotaryEmbedding", rotary_float64)):
            if hasattr(modeling, family + name):  # OPT has neither
                patches.enter_context(mock.patch.object(getattr(modeling, family + name), "forward", forward))
        yield


class Recorder:
    """Keeps the input and the output's gradient of the blocks' linear layers, and the activations between blocks."""

    def __init__(self, llama: Any, matrices: str = "") -> None:
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
        layers = getattr(llama.model, "decoder", llama.model).layers
        layers[0].register_forward_pre_hook(self._keep_first)
        for module in layers:
            module.register_forward_hook(self._keep_hidden)

    def _keep_linear(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()  # [1, tokens, out], or [tokens, out] in OPT's MLP
            self.inputs[name], self.outputs[name] = inputs[0].detach().flatten(0, -2), output

        return hook

    def _keep_first(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.hidden.append(inputs[0].detach()[0])

    def _keep_hidden(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.hidden.append(output.detach()[0])

    def input_and_output_gradient(self, name: str) -> tuple[Tensor, Tensor]:
        """X [tokens, in] and dY [tokens, out] of the sequence that went through last."""
        gradient = self.outputs[name].grad
        assert gradient is not None
        return self.inputs[name], gradient.flatten(0, -2)

    def fisher_terms(self, name: str) -> dict[str, Tensor]:
        """What the sequence that went through last adds to the two Fisher sums, in float64."""
        x, dy = (part.double() for part in self.input_and_output_gradient(name))
        gradient = self.linears[name].weight.grad
        return {
            f"fisher_sequence.{name}": gradient.double().square(),
            f"fisher_token.{name}": dy.square().T @ x.square(),
        }


def load(folder: Path, dtype: torch.dtype, attention: str = "eager", model_type: str = "llama") -> Any:
    causal_lm = getattr(modeling_of(model_type), architecture(model_type))
    return causal_lm.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def mean_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[0, :-1], tokens[1:])


def compute(llama: Any, tokens: Tensor) -> dict[str, Tensor]:
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
    model_type = model.config["model_type"]
    with no_float32_inside(model_type):
        golden = compute(load(folder, torch.float64, model_type=model_type), token_tensor)
    untouched = compute(load(folder, torch.float32, model_type=model_type), token_tensor)
    difference, worst = largest_relative_difference(untouched, golden)
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
    parser = argparse.ArgumentParser(description="Write small random models and their golden numbers.")
    beside = Path(__file__).resolve().parent
    parser.add_argument("--output", type=Path, default=beside, help="default: beside this file")
    parser.add_argument("--only", choices=[model.name for model in MODELS + FAMILY_MODELS], help="one model; default: all")
    arguments = parser.parse_args()
    output: Path = arguments.output

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for model in MODELS + FAMILY_MODELS:
        if arguments.only not in (None, model.name):
            continue
        make(model, output / model.name)


if __name__ == "__main__":
    main()
