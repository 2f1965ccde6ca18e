"""What all contenders train on: rows of Alpaca's form and length, tokenised once, in fixed batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import mean, median
from typing import Any

from gemfleet.train.errors import UserError
from pydantic.dataclasses import dataclass

# The header of Stanford Alpaca's prompts without input (Taori et al. 2023).
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# With these, examples have about 235 tokens in the mean, of which about 80% are supervised, as long instructions have
# them. The corpus has one-liners: an example takes several of its rows.
QUESTIONS = 2  # of an example
MEDIAN_ANSWER, SPREAD, LONGEST_ANSWER = 165, 0.45, 600  # tokens, log-normal
SEED = 42  # makes and chooses the examples


@dataclass(frozen=True)
class Example:
    """One prompt/completion pair. `input_ids[supervised_from:]` are the targets the model is scored on."""

    prompt: str
    completion: str
    input_ids: tuple[int, ...]
    supervised_from: int

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        """Targets; the first token of an example is never one, as nothing precedes it."""
        return self.tokens - max(self.supervised_from, 1)

    @property
    def labels(self) -> list[int]:
        """The input with -100 wherever the token is not a target, as transformers' losses want it."""
        first = max(self.supervised_from, 1)
        return [-100] * first + list(self.input_ids[first:])


Batch = tuple[Example, ...]


def tokenise(tokenizer: Any, prompt: str, completion: str) -> Example:
    """Prompt and completion as one text that ends with the end-of-sequence token. The targets start where the text's
    tokens leave those of the prompt alone, which is TRL's rule too."""
    text_ids = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
    prompt_ids = tokenizer(prompt)["input_ids"]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, text_ids, strict=False))
    return Example(prompt, completion, tuple(text_ids), sum(1 for _ in shared))


def load_batches(model_folder: Path, batch_size: int, count: int) -> list[Batch]:
    """Examples made of the demo's question-answer rows."""
    from gemfleet.train.data.demo import demo_data_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = [(str(row["prompt"]).strip(), str(row["completion"]).strip()) for row in demo_data_rows()]
    texts = long_texts(rows, lambda text: len(tokenizer(text)["input_ids"]), SEED)
    examples = [tokenise(tokenizer, PROMPT.format(instruction=question), answer) for question, answer in texts]
    return choose_batches(examples, batch_size, count, SEED)


def long_texts(rows: Sequence[tuple[str, str]], tokens_of: Callable[[str], int], seed: int) -> list[tuple[str, str]]:
    """Questions with answers of typical lengths, each of several rows; every row is in one of them at most.

    tokens_of: the number of tokens of a text
    """
    draw = random.Random(seed)
    left, made = draw.sample(list(rows), len(rows)), list[tuple[str, str]]()
    while left:
        wanted = min(draw.lognormvariate(math.log(MEDIAN_ANSWER), SPREAD), LONGEST_ANSWER)
        taken, tokens = list[tuple[str, str]](), 0
        while left and (tokens < wanted or len(taken) < QUESTIONS):
            taken.append(left.pop())
            tokens += tokens_of(taken[-1][1])
        if tokens >= wanted:
            made.append((" ".join(q for q, _ in taken[:QUESTIONS]), " ".join(answer for _, answer in taken)))
    return made


def choose_batches(examples: Sequence[Example], batch_size: int, count: int, seed: int) -> list[Batch]:
    """`count` batches of distinct examples, a pure function of its arguments. UserError if examples are too few."""
    needed = batch_size * count
    if needed > len(examples):
        raise UserError(
            f"--steps and --warmup ask for {count} batches of {batch_size}, that is {needed} examples, but the data "
            f"holds {len(examples)}; ask for fewer steps"
        )
    chosen = random.Random(seed).sample(list(examples), needed)
    return [tuple(chosen[first : first + batch_size]) for first in range(0, needed, batch_size)]


def batch_tokens(batch: Batch) -> int:
    """Tokens of a batch without any padding."""
    return sum(example.tokens for example in batch)


def batch_supervised_tokens(batch: Batch) -> int:
    """Targets of a batch."""
    return sum(example.supervised_tokens for example in batch)


def padded_tokens(batch: Batch) -> int:
    """Positions of a batch padded to its longest example."""
    return len(batch) * max(example.tokens for example in batch)


def describe_batches(batches: Sequence[Batch]) -> dict[str, Any]:
    """As the records keep it, so that a reader can judge how typical the examples are."""
    return {
        "source": "question-answer rows of chatterbot-corpus, several in an example",
        "prompt": PROMPT,
        "tokens": token_statistics(batches),
        "tokens_per_step": [batch_tokens(batch) for batch in batches],
        "supervised_tokens_per_step": [batch_supervised_tokens(batch) for batch in batches],
    }


def token_statistics(batches: Sequence[Batch]) -> dict[str, float]:
    examples = [example for batch in batches for example in batch]
    lengths, supervised = [e.tokens for e in examples], [e.supervised_tokens for e in examples]
    return {
        "examples": len(examples),
        "tokens_per_example_mean": round(mean(lengths), 1),
        "tokens_per_example_median": median(lengths),
        "tokens_per_example_max": max(lengths),
        "supervised_share": round(sum(supervised) / sum(lengths), 4),
        "padding_share_when_padded": round(1 - sum(lengths) / sum(padded_tokens(batch) for batch in batches), 4),
    }
