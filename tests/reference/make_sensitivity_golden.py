"""What one changed matrix does to small models, from PyTorch in float64, and slopes through the origin from NumPy.

    pip install numpy torch transformers safetensors
    python3 tests/reference/make_sensitivity_golden.py [--output FILE]

sensitivity_golden.json: {"models": {MODEL: {"layers": {NAME: {"divergence": D, "loss": L}}}}, "slopes": [...]}.
MODEL is a folder beside this file, made by make_golden.py. NAME's weight is multiplied by 1 + 0.5 sin(k + 1), k its
row-major index. D is the mean over all sequences and their 36 next tokens of KL(original || changed) over the
vocabulary, L the mean difference of the cross-entropies, natural logarithms.
"slopes": {"t": [...], "increase": [...], "slope": a, "correlation": r}: a is numpy.linalg.lstsq's solution of
a t^2 = increase, r is numpy.corrcoef of t^2 and increase.

The committed file was made with Python 3.11.7, numpy 2.4.6, torch 2.11.0 (CPU, one thread) and transformers 5.23.0.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from make_golden import LINEAR_NAMES, MODELS, load, no_float32_inside
from torch import Tensor
from transformers.models.llama import LlamaForCausalLM

SEED = 7
SLOPES = 12


def log_probabilities(llama: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """[sequences, targets, vocabulary]"""
    with torch.no_grad():
        return llama(input_ids=tokens, use_cache=False).logits[:, :-1].log_softmax(-1)


def compare(original: Tensor, changed: Tensor, tokens: Tensor) -> dict[str, float]:
    targets = tokens[:, 1:, None]
    divergence = (original.exp() * (original - changed)).sum(-1)
    loss = (original - changed).gather(-1, targets)
    return {"divergence": float(divergence.mean()), "loss": float(loss.mean())}


def measure(folder: Path) -> dict[str, dict[str, float]]:
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    llama = load(folder, torch.float64)
    original = log_probabilities(llama, tokens)
    found = {}
    for name, module in llama.named_modules():
        if not name.endswith(LINEAR_NAMES):
            continue
        kept = module.weight.data.clone()
        wave = torch.sin(torch.arange(1, kept.numel() + 1, dtype=torch.float64)).reshape(kept.shape)
        module.weight.data *= 1 + 0.5 * wave
        found[name] = compare(original, log_probabilities(llama, tokens), tokens)
        module.weight.data = kept
    return found


def slopes() -> list[dict[str, object]]:
    generator = np.random.default_rng(SEED)
    found = []
    for levels in range(2, 2 + SLOPES):
        t = np.sort(generator.uniform(0.01, 0.3, levels))
        increase = generator.normal() * t**2 * generator.uniform(0.5, 1.5, levels)
        slope = np.linalg.lstsq((t**2)[:, None], increase, rcond=None)[0][0]
        correlation = np.corrcoef(t**2, increase)[0, 1]
        found.append(
            {"t": t.tolist(), "increase": increase.tolist(), "slope": float(slope), "correlation": float(correlation)}
        )
    return found


def main() -> None:
    beside = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Write what changed matrices do to small models.")
    parser.add_argument("--output", type=Path, default=beside / "sensitivity_golden.json")
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with no_float32_inside():
        models = {model.name: {"layers": measure(beside / model.name)} for model in MODELS}
    output.write_text(json.dumps({"models": models, "slopes": slopes()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
