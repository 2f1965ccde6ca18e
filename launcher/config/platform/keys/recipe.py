"""Rows of the table: the optimizer, the schedule, the precision and the seed."""

from __future__ import annotations

from .key import Key, P
from .values import Choice, Number

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
