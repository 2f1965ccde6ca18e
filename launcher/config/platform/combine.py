"""Fields of the configuration that several keys of a request decide together.

Each function reads the request and writes fields, notes and problems into the draft.
"""

from __future__ import annotations

from collections.abc import Callable

from .combine_run import combine_run
from .draft import Draft
from .keys.key import P
from .request import Request


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


def combine_adapters(request: Request, draft: Draft) -> None:
    targets = request.values.get("peft.target_modules")
    if isinstance(targets, list) and "lm_head" in targets:
        draft.problems.append(
            "peft.target_modules: found `lm_head`, whose weight is tied to the embedding, which a merge "
            "would change, too; leave it out"
        )
    if request.has("peft.merge_adapter"):
        formats = ["adapter", "merged"] if request.get("peft.merge_adapter") else ["adapter"]
        draft.put("output.formats", formats, "peft.merge_adapter")


COMBINATIONS: tuple[Callable[[Request, Draft], None], ...] = (
    combine_lengths,
    combine_adapters,
    combine_schedule,
    combine_batch,
    combine_sharing,
    combine_data,
    combine_run,
)
