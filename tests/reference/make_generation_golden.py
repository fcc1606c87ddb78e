"""Golden greedy tokens, from PyTorch and transformers.

    pip install numpy torch transformers safetensors
    python3 tests/reference/make_generation_golden.py [--model DIR --prompt T.npy --new-tokens N]

Without arguments writes, beside this script:

    prompts.npy               int32 [3, 17], random token ids below 80
    generation_golden.json    {MODEL: [the 24 tokens after each prompt]} for the small models of make_golden.py

With arguments prints the same list for another model, as JSON. Each token is the most likely one after all before it, by a
forward pass of the whole sequence in float64 (float32 where transformers computes in it); the end of text is a token as
any other. For the small models the script refuses tokens whose logit is not above all others by 1e-4 of the largest. The
committed files were made with Python 3.11.7, numpy 2.4.6, torch 2.11.0 (CPU) and transformers 5.23.0.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
MODELS = ("llama_gqa_tied", "mistral_window", "qwen2_biases", "opt_before", "opt_behind")
PROMPTS, LENGTH, NEW_TOKENS, VOCABULARY = 3, 17, 24, 80


@torch.no_grad()
def generate(model: transformers.PreTrainedModel, prompt: list[int], new_tokens: int, margin: float) -> list[int]:
    tokens = list(prompt)
    for _ in range(new_tokens):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
        first, second = logits.topk(2).values.tolist()
        if first - second < margin * logits.abs().max().item():
            raise SystemExit(f"two tokens are as likely as each other ({first}, {second}); take another seed")
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def tokens_after(folder: Path, prompts: list[list[int]], new_tokens: int, margin: float = 0) -> list[list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return [generate(model.eval(), prompt, new_tokens, margin) for prompt in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Golden greedy tokens.")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the small models)")
    parser.add_argument("--prompt", type=Path, help="token array, one row or [prompts, length]")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.model:
        prompts = np.atleast_2d(np.load(options.prompt)).tolist()
        print(json.dumps(tokens_after(options.model, prompts, options.new_tokens)))
        return
    torch.set_num_threads(1)
    prompts = np.random.default_rng(31).integers(0, VOCABULARY, size=(PROMPTS, LENGTH)).astype(np.int32)
    np.save(HERE / "prompts.npy", prompts)
    golden = {name: tokens_after(HERE / name, prompts.tolist(), NEW_TOKENS, margin=1e-4) for name in MODELS}
    (HERE / "generation_golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
