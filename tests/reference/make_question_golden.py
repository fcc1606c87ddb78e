"""Golden log-likelihoods of multiple-choice answers, from PyTorch and transformers.

    pip install numpy torch transformers safetensors
    python3 tests/reference/make_question_golden.py [--model DIR --questions Q.jsonl]

Without arguments writes, beside this script:

    questions.jsonl         questions of random token ids below 80, in the form that decant reads (io/question_file.h)
    question_golden.json    {MODEL: [[score of each choice] of each question]} for the small models of make_golden.py:
                            the sum of log p over a choice's tokens after its question's context

With arguments prints the same list for another model, as JSON. Stored weights are upcast; everything is computed in
float64 but for what transformers itself computes in float32. The committed files were made with Python 3.11.7,
numpy 2.4.6, torch 2.11.0 (CPU) and transformers 5.23.0.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
MODELS = ("llama_gqa_tied", "mistral_window", "qwen2_biases", "opt_before", "opt_behind")
SUBJECTS = ("anatomy", "world history", "logic")
QUESTIONS = 23
VOCABULARY = 80


def make_questions() -> list[dict[str, Any]]:
    """Contexts of 1 to 70 tokens; every other question has choices of one token, as letters are."""
    random = np.random.default_rng(20)
    questions = []
    for index in range(QUESTIONS):
        count = int(random.integers(2, 6))
        lengths = [1 if index % 2 == 0 else int(random.integers(1, 8)) for _ in range(count)]
        question: dict[str, Any] = {
            "subject": SUBJECTS[int(random.integers(0, 3))],
            "context": random.integers(0, VOCABULARY, size=int(random.integers(1, 71))).tolist(),
            "choices": [random.integers(0, VOCABULARY, size=length).tolist() for length in lengths],
            "answer": int(random.integers(0, count)),
        }
        if index % 3 == 0:
            question["lengths"] = [int(random.integers(1, 40)) for _ in range(count)]
        questions.append(question)
    return questions


@torch.no_grad()
def score(model: transformers.PreTrainedModel, context: list[int], choice: list[int]) -> float:
    tokens = torch.tensor([context + choice])
    logits = model(input_ids=tokens, use_cache=False).logits[0].double()
    log_p = logits[len(context) - 1 : -1].log_softmax(dim=-1)
    return log_p.gather(1, torch.tensor(choice)[:, None]).sum().item()


def scores(folder: Path, questions: list[dict[str, Any]]) -> list[list[float]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return [[score(model.eval(), q["context"], choice) for choice in q["choices"]] for q in questions]


def main() -> None:
    parser = argparse.ArgumentParser(description="Golden log-likelihoods of multiple-choice answers.")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the small models)")
    parser.add_argument("--questions", type=Path, help="JSON lines as decant reads them")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.model:
        questions = [json.loads(line) for line in options.questions.read_text().splitlines()]
        print(json.dumps(scores(options.model, questions)))
        return
    questions = make_questions()
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (HERE / "questions.jsonl").write_text(lines)
    golden = {name: scores(HERE / name, questions) for name in MODELS}
    (HERE / "question_golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
