"""Writes the model card from files and figures of the run: what was trained, on what, how, how fast and how well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from gemfleet.cluster.redaction import redact_text
from gemfleet.launcher.result.chosen import Chosen
from gemfleet.launcher.result.prompt_format import PromptFormat
from gemfleet.launcher.result.public_names import base_reference, is_hub_id, public_name
from gemfleet.train.config.sections.set_names import listed
from gemfleet.train.data.shapes.choice import CHATS
from gemfleet.train.step.history import told_early_end

from .usage import usage

EVAL_SET = re.compile(r"eval_(.+)_loss")  # of an entry in the history: the loss of one of several evaluation sets
ENDED = {
    "stopped": " The run was stopped before its end.",
    "interrupted": " The run was interrupted before its end.",
    "failed": " The run failed before its end.",
}
COMPARISON_FILE = "comparison.json"
MERGED_FOLDER = "merged"
FORMS = {"adapter": "the adapter on its base, by peft", "merged": "the merged model, by transformers"}
TERMS = "https://ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class CardFacts:
    """folder: the published one, complete but for the card; base: what the person called the base model
    facts: `data`, `format`, `chat_template`, `data_report`, `pictures` (their number), `ranks`, `device`,
    `tokens_per_second`, `state`; any may be missing
    chosen: the checkpoint that is published, and why; None: not known
    prompts: how the data write prompts; None: not known
    """

    folder: Path
    base: str
    facts: Mapping[str, Any]
    chosen: Chosen | None = None
    prompts: PromptFormat | None = None


def model_card(card: CardFacts) -> str:
    """The text of README.md. It leaves out figures that are unknown."""
    written = json.loads((card.folder / "training_config.json").read_text())
    state = json.loads((card.folder / "trainer_state.json").read_text())
    train, base = written["train"], _named(card.base)
    parts = [
        _front_matter(card),
        f"# LoRA adapter for {base}",
        _summary(card, train, state),
        "## Use\n",
        usage(
            card.base,
            _format(card.facts),
            (card.folder / MERGED_FOLDER).is_dir(),
            card.prompts.ending if card.prompts else "",
            bool(card.facts.get("pictures")),
        ),
        "## Data\n\n" + _data(card, train),
        "## Losses\n\n![training and evaluation loss](loss.svg)\n\n" + _losses(state, card.chosen),
        "## Recipe\n\n" + _table(("setting", "value"), _settings(train, state)),
        "## Hardware and speed\n\n" + _table(("", ""), _hardware(card.facts)),
        _predictions(card.folder / "metrics.json"),
        _comparison(card.folder / COMPARISON_FILE),
        "## Versions\n\n" + _table(("package", "version"), written["versions"].items()),
        "## Licence\n\nAn adapter made from Gemma is subject to the "
        f"[Gemma Terms of Use]({TERMS}) and its Prohibited Use Policy; whoever passes it on has to pass them on, too. "
        "This is a modified model, not Google's.",
    ]
    return redact_text("\n\n".join(part.strip("\n") for part in parts if part) + "\n")


def _format(facts: Mapping[str, Any]) -> str:
    """The kind of a prompt, by its name in `FORMATS`; empty where it is unknown."""
    if facts.get("format") not in CHATS:
        return str(facts.get("format") or "")
    return "messages" if facts.get("chat_template", "gemma") == "gemma" else "chat"


def _front_matter(card: CardFacts) -> str:
    """What the hub reads; and `prompts`, by which `gemfleet ask` writes a question as the training did."""
    reference = base_reference(card.base)
    content: dict[str, Any] = {"base_model": reference} if is_hub_id(reference) else {}
    content |= {"library_name": "peft", "license": "gemma"}
    content["pipeline_tag"] = "image-text-to-text" if card.facts.get("pictures") else "text-generation"
    content["tags"] = ["gemma3", "lora", "sft", "gemfleet"]
    content |= {"prompts": asdict(card.prompts)} if card.prompts else {}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _summary(card: CardFacts, train: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    ended = ENDED.get(str(card.facts.get("state")), "")
    early = told_early_end(state["log_history"])
    ended = f" Training {early}." if early else ended
    return (
        f"Supervised fine-tuning of `{_named(card.base)}` with gemfleet: LoRA r={train['lora']['r']} on "
        f"{_words(train['lora']['target_modules'])}, {state['global_step']} of {state['max_steps']} optimizer steps, "
        f"{state['num_input_tokens_seen']:,} tokens seen.{ended}"
        + (f"\n\nPublished is {card.chosen.reason}." if card.chosen else "")
    )


def _data(card: CardFacts, train: Mapping[str, Any]) -> str:
    data = train["data"]
    told = card.facts.get("data")
    source = _named(str(told)) if told else listed([_named(path) for path in _paths(data["train"])])
    evaluated = _paths(data["eval"]) if data["eval"] else []
    own = "an evaluation set of its own" if len(evaluated) == 1 else f"{len(evaluated)} evaluation sets of its own"
    held_out = own if evaluated else f"a seeded {data['eval_fraction']:.0%} held out"
    report = f"\n\n{card.facts['data_report']}" if card.facts.get("data_report") else ""
    return f"`{source}`, with {held_out}; examples of at most {data['max_length']} tokens.{report}"


def _paths(sets: str | list[dict[str, Any]]) -> list[str]:
    """The paths of a written `train.data.train` or `train.data.eval`."""
    return [sets] if isinstance(sets, str) else [entry["path"] for entry in sets]


def _losses(state: Mapping[str, Any], chosen: Chosen | None) -> str:
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    rows = []
    for entry in evaluations:
        mark = " (published)" if chosen and entry["step"] == chosen.step else ""
        rows.append((f"step {entry['step']}, evaluation{mark}", f"{entry['eval_loss']:.4f}"))
        by_set = ((found.group(1), value) for key, value in entry.items() if (found := EVAL_SET.fullmatch(key)))
        rows += [(f"step {entry['step']}, {name}", f"{value:.4f}") for name, value in by_set]
    if losses:
        rows.append((f"training, mean of {len(losses)} steps", f"{fmean(losses):.4f}"))
    return _table(("where", "mean cross-entropy per supervised token"), rows)


def _settings(train: Mapping[str, Any], state: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    optim, lora, batch = train["optim"], train["lora"], train["batch"]
    yield "examples in an optimizer step", batch["global"]
    yield "epochs", f"{state['epoch']:.2f} of {train['epochs']:g}"
    yield "learning rate", f"{optim['learning_rate']:g}, {optim['schedule']}, warm-up {optim['warmup_ratio']:g}"
    yield "AdamW", f"betas {optim['betas'][0]:g} and {optim['betas'][1]:g}, weight decay {optim['weight_decay']:g}"
    yield "gradient norm clipped at", f"{optim['max_grad_norm']:g}" if optim["max_grad_norm"] else "not clipped"
    yield "LoRA", f"r {lora['r']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}"
    yield "seed", train["seed"]
    for entry in state["log_history"]:
        if began := entry.get("began_with"):
            yield "goes on from the adapter of", began
        if changes := entry.get("accepted_changes"):
            yield f"changed when it was resumed at step {entry['step']}", "; ".join(changes)
    yield "strategy, precision asked for", f"{train['strategy']}, {train['precision']}"
    if train.get("quantization") not in (None, "none"):
        yield "frozen base held in", train["quantization"]


def _hardware(facts: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    names = {
        "ranks": "ranks",
        "device": "device of rank 0",
        "tokens_per_second": "tokens per second, all ranks (median)",
    }
    for key, name in names.items():
        if facts.get(key) is not None:
            value = facts[key]
            yield name, f"{value:,.0f}" if isinstance(value, float) else value


def _predictions(path: Path) -> str:
    if not path.is_file():
        return ""
    metrics = json.loads(path.read_text())
    rows = [(name.replace("_", " "), f"{v:.4g}" if isinstance(v, float) else v) for name, v in metrics.items()]
    return "## Answers on the evaluation set\n\nThe texts are in `predictions.jsonl`.\n\n" + _table(
        ("metric", ""), rows
    )


def _comparison(path: Path) -> str:
    """How far the published forms are from what was trained; empty if they were not compared."""
    if not path.is_file():
        return ""
    found = json.loads(path.read_text())
    rows = []
    for form in found["forms"]:
        bound = "a quantised base explains" if form["bound"] is None else f"of at most {form['bound']:.2g} by rounding"
        rows.append((f"{FORMS[form['form']]}: largest difference of two logits", f"{form['difference']:.2g}, {bound}"))
        rows.append((f"{FORMS[form['form']]}: equal answers", f"{form['equal']} of {found['prompts']}"))
    return (
        "## Comparison\n\nBefore it was published, this result was compared with the training loop in "
        f"{found['dtype']}: the logits on {found['prompts']} prompts of {found['source']}, and the greedy answers to "
        f"them ({found['tokens']} tokens). The largest logit is {found['forms'][0]['largest']:.3g}.\n\n"
        + _table(("compared with the training loop", ""), rows)
    )


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _words(names: Any) -> str:
    return ", ".join(names) if isinstance(names, list) else str(names)


def _named(source: str) -> str:
    """What the card calls a source: a repository by its address, a folder of this machine by its name."""
    name = public_name(source)
    return name.removeprefix("git+").partition("#")[0] if name.startswith("git+") else name
