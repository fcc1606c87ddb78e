"""An independent run of decant's measuring protocol in PyTorch: perplexity, calibration loss, Fisher sums.

    pip install numpy torch transformers safetensors h5py
    python3 tests/reference/make_protocol.py --model DIR [--text TEST.npy] [--calibration CALIBRATION.npy]
        [--quantized CONTAINER.h5] [--fisher SUMS.safetensors --matrices PATTERN] [--device cuda]

The model is a Hugging Face folder and runs in float32. Results go to stdout, one "name value" a line, and progress to
stderr.

    --text         perplexity over consecutive windows of 2048 tokens, the last partial window dropped: exp of the mean
                   loss over the 2047 predicted tokens of every window
    --calibration  mean over sequences of each sequence's mean loss; a one-dimensional array is cut into sequences of
                   512 tokens, and the first 128 sequences are taken
    --fisher       both Fisher sums over the same sequences as make_golden.py defines them (fisher_sequence.NAME and
                   fisher_token.NAME, summed in float64, stored as f32) for the linear layers in whose names the regular
                   expression --matrices is found
    --quantized    puts the weights of a decant container into a copy of the model and prints its perplexity too, the
                   mean KL divergence (original from quantized, nats a predicted token) and the top-1 agreement; reads
                   nothing but the datasets described in `dense_weight` below

Perplexities quoted elsewhere were made with torch 2.11.0, transformers 5.23.0 and h5py 3.16.0.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.llama import LlamaForCausalLM

from make_golden import LINEAR_NAMES, Recorder, load, mean_loss, write_tensors

# Positions whose log-probabilities are held in float64 at once.
POSITIONS_AT_ONCE = 256


def windows(path: Path, length: int, limit: int | None) -> Tensor:
    """A token array as int64 [windows, length]: a matrix as it is, a vector cut into windows."""
    tokens = np.load(path)
    if tokens.ndim == 1:
        tokens = tokens[: len(tokens) // length * length].reshape(-1, length)
    return torch.from_numpy(tokens[:limit].astype(np.int64))


def progress(rows: Tensor, what: str) -> Iterator[Tensor]:
    start = last = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        if time.monotonic() - last > 5:
            last = time.monotonic()
            print(f"{what}: {done} of {len(rows)}, {last - start:.0f} s", file=sys.stderr)


def report(name: str, value: float) -> None:
    print(f"{name} {value!r}", flush=True)


@torch.no_grad()
def measure_text(original: LlamaForCausalLM, quantized: LlamaForCausalLM | None, text: Tensor) -> None:
    """Perplexity of one model, or of two and how far they are apart. Sums are float64, on the CPU."""
    models = [original] if quantized is None else [original, quantized]
    loss = [0.0 for _ in models]
    divergence = 0.0
    agreed = 0
    for window in progress(text, "text"):
        tokens = window.to(original.device)
        logits = [model(input_ids=tokens[None], use_cache=False).logits[0, :-1] for model in models]
        for part in torch.arange(len(tokens) - 1, device=tokens.device).split(POSITIONS_AT_ONCE):
            log_p = [model_logits[part].double().log_softmax(dim=-1) for model_logits in logits]
            for index, values in enumerate(log_p):
                loss[index] -= values.gather(1, tokens[part + 1, None]).sum().item()
            if quantized is not None:
                divergence += (log_p[0].exp() * (log_p[0] - log_p[1])).sum().item()
                agreed += int((logits[0][part].argmax(-1) == logits[1][part].argmax(-1)).sum())
    predicted = text.shape[0] * (text.shape[1] - 1)
    report("windows", text.shape[0])
    report("perplexity", math.exp(loss[0] / predicted))
    if quantized is not None:
        report("quantized_perplexity", math.exp(loss[1] / predicted))
        report("kl_divergence", divergence / predicted)
        report("top1_agreement", agreed / predicted)


def measure_calibration(model: LlamaForCausalLM, sequences: Tensor, fisher: Path | None, matrices: str) -> None:
    """Calibration loss, and the Fisher sums of the chosen matrices when a file for them is given."""
    model.requires_grad_(False)
    recorder = None
    if fisher is not None:
        recorder = Recorder(model, matrices)
        for linear in recorder.linears.values():
            linear.weight.requires_grad_(True)
    sums: dict[str, Tensor] = {}
    total = 0.0
    for sequence in progress(sequences, "calibration"):
        tokens = sequence.to(model.device)
        loss = mean_loss(model(input_ids=tokens[None], use_cache=False).logits, tokens)
        total += loss.item()
        if recorder is None:
            continue
        model.zero_grad()
        recorder.hidden.clear()
        loss.backward()
        for name in recorder.linears:
            for key, term in recorder.fisher_terms(name).items():
                sums[key] = sums[key].add_(term) if key in sums else term
    report("sequences", len(sequences))
    report("calibration_loss", total / len(sequences))
    if fisher is not None:
        write_tensors(fisher, {name: value.float().cpu() for name, value in sums.items()})


def dense_weight(layer: h5py.Group) -> NDArray[np.float32]:
    """The matrix that a linear layer of a decant container stands for: weight = levels[code] + sparse.

    codes                u32 [out, bits, ceil(in / 32)]: bit j % 32 of word j / 32, plane b = bit b of code j
    levels               f16 [out, 2^bits]
    sparse/row_offsets   u32 [out + 1]       the rows' parts of the next two; the group may be missing
    sparse/columns       u16 or u32 [nonzeros]
    sparse/values        f16 [nonzeros]      added to the decoded level
    """
    planes, levels = layer["codes"][:], layer["levels"][:].astype(np.float32)
    rows, bits, words = planes.shape
    if levels.shape != (rows, 2**bits):
        raise SystemExit(f"{layer.name}: levels {levels.shape} do not fit codes {planes.shape}")
    codes = np.zeros((rows, words, 32), dtype=np.int64)
    for plane in range(bits):
        bit = planes[:, plane, :, None] >> np.arange(32, dtype=np.uint32) & 1
        codes |= bit.astype(np.int64) << plane
    weight = np.take_along_axis(levels, codes.reshape(rows, -1), axis=1)
    if "sparse" in layer:
        sparse = layer["sparse"]
        columns, values = sparse["columns"][:].astype(np.int64), sparse["values"][:].astype(np.float32)
        row = np.repeat(np.arange(rows), np.diff(sparse["row_offsets"][:].astype(np.int64)))
        np.add.at(weight, (row, columns), values)
    return weight


def with_container(original: LlamaForCausalLM, container: Path) -> LlamaForCausalLM:
    """A copy of the model with every linear layer that the container holds replaced."""
    quantized = copy.deepcopy(original)
    replaced = 0
    with h5py.File(container) as file:
        for name, module in quantized.named_modules():
            if name.endswith(LINEAR_NAMES) and name in file:
                # The last word of a plane may reach past the row's end.
                weight = dense_weight(file[name])[:, : module.in_features]
                module.weight.data.copy_(torch.from_numpy(weight))
                replaced += 1
    if replaced == 0:
        raise SystemExit(f"{container}: no linear layer of the model is in it")
    report("replaced_matrices", replaced)
    return quantized


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity, calibration loss and Fisher sums from PyTorch.")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, help="token array (.npy) to measure perplexity on")
    parser.add_argument("--window", type=int, default=2048, help="tokens a window of the text (default %(default)s)")
    parser.add_argument("--windows", type=int, help="take only the first so many windows of the text")
    parser.add_argument("--calibration", type=Path, help="token array (.npy) to calibrate on")
    parser.add_argument("--length", type=int, default=512, help="tokens a calibration sequence (default %(default)s)")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences (default %(default)s)")
    parser.add_argument("--fisher", type=Path, help="file for the Fisher sums; needs --calibration")
    parser.add_argument("--matrices", default="", help="pattern of the matrices in it (default: all)")
    parser.add_argument("--quantized", type=Path, help="decant container to compare on the text; needs --text")
    parser.add_argument("--attention", default="sdpa", help="eager (plain, slower) or sdpa (default)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    options = parser.parse_args()
    if options.fisher and not options.calibration:
        parser.error("--fisher needs --calibration")
    if options.quantized and not options.text:
        parser.error("--quantized needs --text")

    torch.set_float32_matmul_precision("highest")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = load(options.model, torch.float32, options.attention).to(options.device)
    if options.text:
        quantized = with_container(model, options.quantized) if options.quantized else None
        measure_text(model, quantized, windows(options.text, options.window, options.windows))
    if options.calibration:
        sequences = windows(options.calibration, options.length, options.sequences)
        measure_calibration(model, sequences, options.fisher, options.matrices)


if __name__ == "__main__":
    main()
