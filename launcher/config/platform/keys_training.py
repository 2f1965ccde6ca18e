"""Rows of the table: the recipe."""

from __future__ import annotations

from .key import Key
from .values import Anything, Choice, Flag, Number, Text

P = "train_model_parameters."
INTERVALS = Choice({"epoch": "epoch", "steps": "steps", "no": "no"})
ONE_TEMPLATE = (
    'gemfleet writes chats with Gemma\'s own template; set it to `tokenizer` for a data set of messages, or to "None" '
    "for text that is written out"
)
NOT_SFT = "belongs to preference training; supervised fine-tuning has no use for it"


def unused(name: str, meant: str, why: str) -> Key:
    return Key(P + name, meant, "", Anything(), why, how="unused")


RECIPE_KEYS = (
    Key(P + "num_train_epochs", "passes over the data", "train.epochs", Number(above=0), "length of the run"),
    Key(P + "learning_rate", "peak learning rate", "train.optim.learning_rate", Number(above=0), "AdamW's step"),
    Key(
        P + "scheduler",
        "shape of the learning rate",
        "train.optim.schedule",
        Choice({name: name for name in ("linear", "cosine", "constant", "constant_with_warmup")}),
        "how the learning rate falls after the warm-up",
        how="together",
    ),
    Key(
        P + "warmup_ratio",
        "share of the steps spent warming up",
        "train.optim.warmup_ratio",
        Number(low=0, high=1),
        "the learning rate rises from 0 over these steps; `constant` has no warm-up",
        how="together",
    ),
    Key(
        P + "optimizer",
        "optimizer",
        "",
        Choice(
            dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw"),
            remedy="gemfleet has AdamW only, over fp32 adapters; set it to `adamw_torch`",
        ),
        "AdamW in any of its names",
        how="checked",
        default="adamw_torch",
    ),
    Key(P + "weight_decay", "AdamW's weight decay", "train.optim.weight_decay", Number(low=0), "shrinks the adapters"),
    Key(
        P + "max_grad_norm",
        "where gradients are clipped",
        "train.optim.max_grad_norm",
        Number(low=0),
        "bounds the norm of each step's gradient; 0: no bound",
    ),
    Key(
        P + "seed",
        "seed",
        "train.seed",
        Number(whole=True, low=0),
        "decides the order of the data, dropout and the adapters' start",
    ),
    Key(
        P + "mixed_precision",
        "precision of the computation",
        "train.precision",
        Choice({"fp16": "auto", "bf16": "bf16", "no": "fp32", "fp32": "fp32"}),
        "Gemma 3 overflows fp16, so fp16 becomes bf16, or fp32 where the device has no bf16; none: fp32",
        how="together",
    ),
)

BATCH_KEYS = (
    Key(
        P + "per_device_train_batch_size",
        "examples a device holds at once",
        "train.batch.global",
        Number(whole=True, low=1),
        "times gradient_accumulation it is the global batch, on any number of workers; wins over batch_size",
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

DATA_KEYS = (
    Key(
        P + "chat_template",
        "how chats become text",
        "train.data.format",
        Choice({"tokenizer": "messages", "gemma": "messages", "gemma3": "messages"}, remedy=ONE_TEMPLATE),
        "none: the text column as it is; `tokenizer`: a column of messages in Gemma's turns",
        how="together",
    ),
    Key(
        P + "dataset_text_field",
        "column of the texts",
        "train.data.columns.text",
        Text("the name of a column"),
        "the column that is trained on",
        how="together",
    ),
    Key(
        P + "column_mappings.text_column",
        "the same",
        "train.data.columns.text",
        Text("the name of a column"),
        "has to agree with dataset_text_field where both are given",
        how="together",
    ),
    unused("column_mappings.prompt_text_column", "column of the prompts", NOT_SFT),
    unused("column_mappings.rejected_text_column", "column of the worse answers", NOT_SFT),
    unused("max_prompt_length", "longest prompt", NOT_SFT),
    unused("max_completion_length", "longest answer", NOT_SFT),
    unused("model_ref", "reference model", NOT_SFT),
    unused("dpo_beta", "strength of the preference", NOT_SFT),
)

RUN_KEYS = (
    Key(
        P + "logging_strategy",
        "when the loss is logged",
        "train.logging.every",
        INTERVALS,
        "a line with the mean loss since the last one; every step's own loss is recorded in any case",
        how="together",
        default="epoch",
    ),
    Key(
        P + "logging_steps",
        "steps between two such lines",
        "train.logging.every",
        Number(whole=True, low=-1),
        "counts for the strategy `steps`; -1 or 0 means once an epoch",
        how="together",
        default=-1,
    ),
    Key(
        P + "evaluation_strategy",
        "when the evaluation set is scored",
        "train.evaluation.every",
        INTERVALS,
        "a tenth of the data is held out for it",
        how="together",
        default="epoch",
    ),
    Key(
        P + "eval_steps",
        "steps between two evaluations",
        "train.evaluation.every",
        Number(whole=True, low=1),
        "counts for the strategy `steps`; missing: as logging_steps",
        how="together",
    ),
    Key(
        P + "save_total_limit",
        "how many checkpoints are kept",
        "cluster.keep_checkpoints",
        Number(whole=True, low=1),
        "older ones go once a newer one is verified",
    ),
    Key(
        P + "log",
        "where curves are written",
        "output.tensorboard",
        Choice(
            {"tensorboard": True, "no": False},
            remedy='gemfleet writes TensorBoard files; set it to `tensorboard` or "none"',
        ),
        "`tensorboard` publishes the event files with the result; none: leaves them out",
        how="together",
    ),
    Key(
        P + "do_train",
        "whether to train",
        "train.max_steps",
        Flag(),
        "false: nothing is trained; the base model is scored on the evaluation set, and answers it for do_predict",
        how="together",
        default=True,
    ),
    Key(
        P + "do_predict",
        "whether to generate answers after training",
        "predict",
        Flag(),
        "generates on the evaluation set and writes predictions.jsonl and metrics.json",
        how="together",
        default=False,
    ),
    Key(
        P + "unsloth",
        "another library's trainer",
        "",
        Flag(refused_when=True, remedy="gemfleet has its own step and cannot use it; set it to false"),
        "has to be false",
        how="checked",
        default=False,
    ),
    Key(
        P + "output_dir",
        "folder of the result",
        "",
        Text("a path"),
        "never written: the result lies below $GEMFLEET_HOME and is delivered from there",
        how="unused",
    ),
)
