"""Rows of the table: the batch, the memory, and how ranks share the work."""

from __future__ import annotations

from .key import Key, P
from .values import Choice, Flag, Number

BATCH_KEYS = (
    Key(
        P + "per_device_train_batch_size",
        "examples a device holds at once",
        "train.batch.global",
        Number(whole=True, low=1),
        "times gradient_accumulation it is the global batch, on any number of ranks; wins over batch_size",
        how="together",
    ),
    Key(
        P + "batch_size",
        "the same, in older requests",
        "train.batch.global",
        Number(whole=True, low=1),
        "stands where per_device_train_batch_size is missing",
        how="together",
    ),
    Key(
        P + "gradient_accumulation",
        "passes in an optimizer step",
        "train.batch.global",
        Number(whole=True, low=1),
        "times the batch of a device it is the global batch, which never changes during a run",
        how="together",
        default=1,
    ),
    Key(
        P + "auto_find_batch_size",
        "find what fits into memory",
        "train.batch.micro",
        Flag(),
        "true: how many rows are in memory at once is measured; false: as many as a device's batch",
        how="together",
        default=False,
    ),
    Key(
        P + "per_device_eval_batch_size",
        "examples a device evaluates at once",
        "train.evaluation.micro",
        Number(whole=True, low=1),
        "rows in memory at once during evaluation, and prompts at once during prediction",
        how="together",
    ),
    Key(
        P + "gradient_checkpointing",
        "recompute activations in the backward pass",
        "train.activation_checkpointing",
        Flag(),
        "less memory for more computation",
        how="together",
    ),
    Key(
        P + "disable_gc",
        "no gradient checkpointing after all",
        "train.activation_checkpointing",
        Flag(),
        "true keeps every activation; together with gradient_checkpointing it is a contradiction",
        how="together",
    ),
    Key(
        P + "distributed_backend",
        "how devices share the work",
        "train.strategy",
        Choice({"ddp": "ddp", "deepspeed": "deepspeed", "fsdp2": "fsdp2"}),
        "`ddp`, `deepspeed` or `fsdp2`; none: `ddp`",
        how="together",
        default="ddp",
    ),
    Key(
        P + "use_fsdp2",
        "share the base between devices",
        "train.strategy",
        Flag(),
        "true chooses `fsdp2`; together with another backend it is a contradiction",
        how="together",
        default=False,
    ),
    Key(
        P + "use_flash_attention",
        "insist on flash attention",
        "train.attention",
        Flag(),
        "true: the CUDA kernel for packed rows or an error; false: the best one the device has",
        how="together",
        default=False,
    ),
)
