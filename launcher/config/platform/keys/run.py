"""Rows of the table: what a run logs, scores, keeps and does."""

from __future__ import annotations

from .key import Key, P
from .values import Choice, Flag, Number, Text

INTERVALS = Choice({"epoch": "epoch", "steps": "steps", "no": "no"})

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
