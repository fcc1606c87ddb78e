#!/usr/bin/env python3
"""Times one sequence of Fisher calibration in PyTorch, to stand beside decant's: transformers' LLaMA with random BF16
weights, a backward pass for each sequence, squared gradients of the linear layers added up in F32.

usage: fisher_pytorch.py [--layers 32] [--hidden 4096] [--intermediate 11008] [--heads 32] [--attention eager] [LENGTH…]
Needs a GPU, PyTorch and transformers. Prints the median seconds a sequence and the peak memory.
"""

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--attention", default="eager")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("lengths", type=int, nargs="*", default=[512, 2048])
    options = parser.parse_args()
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        vocab_size=32000,
        attn_implementation=options.attention,
    )
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    sums = {}

    def add_square(parameter: torch.Tensor) -> None:
        gradient = parameter.grad.float()
        sums[parameter].addcmul_(gradient, gradient)
        parameter.grad = None

    for block in model.model.layers:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.requires_grad_(True)
                sums[module.weight] = torch.zeros(module.weight.shape, dtype=torch.float32, device="cuda")
                module.weight.register_post_accumulate_grad_hook(add_square)
    for length in options.lengths:
        seconds = []
        for repeat in range(options.repeats + 2):
            tokens = torch.randint(0, 32000, (1, length), device="cuda")
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(tokens, labels=tokens, use_cache=False).loss.backward()
            torch.cuda.synchronize()
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"{options.attention} {length} tokens: {statistics.median(seconds):.4f} s a sequence, {peak:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
