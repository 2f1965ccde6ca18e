"""Fields of the configuration that several keys of a request decide together.

Each function takes the request, writes what it decides into the draft, and notes or refuses what a person should know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemfleet.launcher.sources.address import check_address
from gemfleet.launcher.sources.objects import parse_object_address
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import model_context

from .keys_training import P
from .request import Request

OBJECT_STORES = ("s3", "gs")
Exists = Callable[[str], bool]
Context = Callable[[str], int | None]


@dataclass
class Draft:
    """fields: values by dotted target; because: the request's keys behind each; notes and problems: sentences."""

    fields: dict[str, Any] = field(default_factory=dict)
    because: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def put(self, target: str, value: Any, *keys: str) -> None:
        self.fields[target], self.because[target] = value, keys


def path_exists(path: str) -> bool:
    """Whether a folder of that name is on this machine."""
    return Path(path).expanduser().is_dir()


def context_of(model: str) -> int | None:
    """The context of a model folder on this machine; None for anything else."""
    folder = Path(model).expanduser()
    try:
        return model_context(folder) if (folder / "config.json").is_file() else None
    except (UserError, OSError):
        return None  # what is wrong with the folder is told when the run looks at it


def combine_places(request: Request, draft: Draft, exists: Exists) -> None:
    for section, target in (("model", "train.model"), ("dataset", "train.data.train")):
        _source(request, draft, exists, section, target)
    if request.has("experiment_name"):
        draft.put("name", request.get("experiment_name"), "experiment_name")
    _delivery(request, draft)


def _source(request: Request, draft: Draft, exists: Exists, section: str, target: str) -> None:
    where = "model_repository" if section == "model" else "dataset_repository"
    repository_key, path_key = f"{section}.{where}", f"{section}.{section}_path"
    branch_key = f"{section}.{section}_branch"
    kind = request.get(f"{section}.type")
    repository, path, branch = (request.values.get(key) for key in (repository_key, path_key, branch_key))
    if path is not None and (kind == "local" or exists(path)):
        draft.put(target, path, path_key)
    elif kind == "local":
        draft.problems.append(f"{path_key}: missing; {section}.type is `local`, so give the folder that holds it")
    elif repository is None:
        draft.problems.append(f"{repository_key}: missing; give where the {section} comes from")
    elif kind == "git":
        source = f"git+{repository}" + (f"#{branch}" if branch else "")
        draft.put(target, source, repository_key, *([branch_key] if branch else []))
        _check_address(draft, repository_key, repository, branch)
    else:
        draft.put(target, repository, repository_key)
        if kind in OBJECT_STORES:
            _check_store(draft, repository_key, repository, kind)
        if branch not in (None, "main"):
            draft.problems.append(f"{branch_key}: found '{branch}'; only a git repository has branches here, remove it")


def _delivery(request: Request, draft: Draft) -> None:
    kind, repository = request.get("save_model.type"), request.values.get("save_model.model_repository")
    if kind == "local":
        return
    if repository is None:
        draft.problems.append(f"save_model.model_repository: missing; save_model.type is `{kind}`, so give its address")
        return
    draft.put("output.deliver.type", kind, "save_model.type")
    draft.put("output.deliver.repository", repository, "save_model.model_repository")
    if kind == "git":
        _check_address(draft, "save_model.model_repository", repository, None)
    elif kind in OBJECT_STORES:
        _check_store(draft, "save_model.model_repository", repository, kind)
    branch = request.values.get("experiment_name")
    if kind == "git" and branch is None:
        draft.problems.append("experiment_name: missing; the result is pushed to the branch of that name")
    elif kind != "hub" and branch is not None:
        draft.put("output.deliver.branch", branch, "experiment_name")


def _check_address(draft: Draft, key: str, repository: str, branch: str | None) -> None:
    try:
        check_address(repository, branch)
    except UserError as error:
        draft.problems.append(f"{key}: {error}")


def _check_store(draft: Draft, key: str, address: str, kind: str) -> None:
    try:
        scheme = parse_object_address(address).scheme
    except UserError as error:
        draft.problems.append(f"{key}: {error}")
    else:
        if scheme != kind:
            draft.problems.append(f"{key}: found '{address}', but its type is `{kind}`; give one of {kind}://")


def combine_batch(request: Request, draft: Draft) -> None:
    per_device, older, steps = P + "per_device_train_batch_size", P + "batch_size", P + "gradient_accumulation"
    auto, found = P + "auto_find_batch_size", request.values.get(P + "per_device_train_batch_size")
    batch = found if found is not None else request.values.get(older, 1)
    source = per_device if found is not None or not request.has(older) else older
    if found is not None and request.has(older) and request.get(older) != found:
        draft.notes.append(
            f"{per_device} is {found} and {older} is {request.get(older)}; the former counts, so an optimizer step "
            f"holds {found} x {request.get(steps)} = {found * request.get(steps)} examples"
        )
    draft.put("train.batch.global", batch * request.get(steps), source, steps)
    draft.put("train.batch.micro", "probe" if request.get(auto) else batch, auto, source)
    if request.has(P + "per_device_eval_batch_size"):
        draft.put(
            "train.evaluation.micro", request.get(P + "per_device_eval_batch_size"), P + "per_device_eval_batch_size"
        )


def combine_lengths(request: Request, draft: Draft) -> None:
    block, longest = "tokenizer_parameters.block_size", "tokenizer_parameters.max_length"
    given = {name: request.get(name) for name in (block, longest) if request.has(name)}
    if given:
        shortest = min(given, key=lambda name: (given[name], name))
        draft.put("train.data.max_length", given[shortest], *given)
        if len(set(given.values())) > 1:
            draft.notes.append(
                f"{block} is {given[block]} and {longest} is {given[longest]}; rows and examples are of at most "
                f"{given[shortest]} tokens"
            )
    draft.put("train.data.too_long", "truncate", longest)


def combine_data(request: Request, draft: Draft) -> None:
    field_key, mapped_key = P + "dataset_text_field", P + "column_mappings.text_column"
    names = {key: request.get(key) for key in (field_key, mapped_key) if request.has(key)}
    if len(set(names.values())) > 1:
        draft.problems.append(
            f"{field_key}: found '{names[field_key]}', but {mapped_key} is '{names[mapped_key]}'; give the same column"
        )
    template = P + "chat_template"
    column = next(iter(names.values()), None)
    if request.has(template):
        draft.put("train.data.format", request.get(template), template)
        if column is not None:
            draft.put("train.data.columns.messages", column, *names)
        return
    if template in request.said_nothing or column is not None:
        draft.put("train.data.format", "text", template)
    if column is not None:
        draft.put("train.data.columns.text", column, *names)


def combine_schedule(request: Request, draft: Draft) -> None:
    shape, warmup = P + "scheduler", P + "warmup_ratio"
    if request.has(shape):
        draft.put("train.optim.schedule", request.get(shape), shape)
    if request.get(shape) == "constant" and request.get(warmup):
        draft.notes.append(
            f"{warmup} is {request.get(warmup):g}, but {shape} `constant` has no warm-up; it is left out"
        )
    elif request.has(warmup):
        draft.put("train.optim.warmup_ratio", request.get(warmup), warmup)
    precision = P + "mixed_precision"
    if precision in request.said_nothing:
        draft.put("train.precision", "fp32", precision)
    elif request.has(precision):
        draft.put("train.precision", request.get(precision), precision)
        if request.get(precision) == "auto":
            draft.notes.append(
                f"{precision} is fp16, which Gemma 3's activations overflow; training runs in bf16, or in "
                "fp32 where the device gains nothing from bf16"
            )


def combine_sharing(request: Request, draft: Draft) -> None:
    backend, fsdp2 = P + "distributed_backend", P + "use_fsdp2"
    chosen = request.values.get(backend)
    if request.get(fsdp2) and chosen not in (None, "fsdp2"):
        draft.problems.append(f"{backend}: found '{chosen}' while {fsdp2} is true; choose one of the two")
    strategy = "fsdp2" if request.get(fsdp2) else request.get(backend)
    draft.put("train.strategy", strategy, fsdp2 if request.get(fsdp2) else backend)
    if request.get(P + "use_flash_attention"):
        draft.put("train.attention", "flash", P + "use_flash_attention")
    wanted, disabled = P + "gradient_checkpointing", P + "disable_gc"
    if request.get(wanted) and request.get(disabled):
        draft.problems.append(f"{wanted}: found true while {disabled} is true; choose one of the two")
    if request.has(wanted) or request.has(disabled):
        recompute = request.get(wanted) and not request.get(disabled)
        draft.put("train.activation_checkpointing", "full" if recompute else "off", wanted, disabled)


def combine_run(request: Request, draft: Draft) -> None:
    strategy, steps = P + "logging_strategy", P + "logging_steps"
    interval = request.get(steps)
    log = {"epoch": "epoch", "no": "never", "steps": interval if interval > 0 else "epoch"}[request.get(strategy)]
    draft.put("train.logging.every", log, strategy, steps)
    evaluation, eval_steps = P + "evaluation_strategy", P + "eval_steps"
    every = request.values.get(eval_steps) or (interval if interval > 0 else None)
    if request.get(evaluation) == "steps" and every is None:
        draft.problems.append(f"{eval_steps}: missing; {evaluation} is `steps`, so give how many steps lie between two")
    when = {"epoch": "epoch", "no": "never", "steps": every or "epoch"}[request.get(evaluation)]
    draft.put("train.evaluation.every", when, evaluation, eval_steps)
    _held_out(request, draft)
    _without_training(request, draft)
    if P + "log" in request.said_nothing or request.has(P + "log"):
        draft.put("output.tensorboard", bool(request.values.get(P + "log", False)), P + "log")


def _held_out(request: Request, draft: Draft) -> None:
    evaluation, predict = P + "evaluation_strategy", P + "do_predict"
    if request.get(evaluation) == "no" and not request.get(predict):
        draft.put("train.data.eval_fraction", 0.0, evaluation)
        return
    draft.put("train.data.eval_fraction", 0.1, evaluation, predict)
    draft.notes.append("the request names no evaluation set; a seeded tenth of the data is held out and not trained on")
    if request.get(predict):
        batch = request.values.get(P + "per_device_eval_batch_size", 4)
        draft.put("predict.batch", batch, predict, P + "per_device_eval_batch_size")


def _without_training(request: Request, draft: Draft) -> None:
    train, evaluation, predict = P + "do_train", P + "evaluation_strategy", P + "do_predict"
    if request.get(train):
        return
    draft.put("train.max_steps", 0, train)
    if request.get(evaluation) == "no" and not request.get(predict):
        draft.problems.append(
            f"{train}: found false while {evaluation} is `no` and {predict} is false; set one of them"
        )
    if request.values.get("peft.merge_adapter"):
        draft.problems.append(f"peft.merge_adapter: found true while {train} is false; there is no adapter to merge")


def combine_adapters(request: Request, draft: Draft) -> None:
    targets = request.values.get("peft.target_modules")
    if isinstance(targets, list) and "lm_head" in targets:
        draft.problems.append(
            "peft.target_modules: found `lm_head`, whose weight is tied to the embedding, which a merge "
            "would change, too; leave it out"
        )


def check_context(draft: Draft, context: Context) -> None:
    """Refuse rows longer than the model's context, where the model is on this machine already."""
    model, length = draft.fields.get("train.model"), draft.fields.get("train.data.max_length")
    longest = context(model) if isinstance(model, str) else None
    if longest is not None and isinstance(length, int) and length > longest:
        names = " and ".join(draft.because["train.data.max_length"])
        draft.problems.append(f"{names}: found {length}, but {model} was made for {longest} tokens; lower it")


COMBINATIONS: tuple[Callable[[Request, Draft], None], ...] = (
    combine_lengths,
    combine_adapters,
    combine_schedule,
    combine_batch,
    combine_sharing,
    combine_data,
    combine_run,
)
