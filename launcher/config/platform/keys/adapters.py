"""Rows of the table: the tokenizer's settings and the adapters."""

from __future__ import annotations

from .key import Key
from .values import Choice, Flag, Names, Number

TOKENIZER_KEYS = (
    Key(
        "tokenizer_parameters.block_size",
        "tokens in a training row",
        "train.data.max_length",
        Number(whole=True, low=2),
        "tokens in a packed row; with max_length, the smaller of the two",
        how="together",
    ),
    Key(
        "tokenizer_parameters.max_length",
        "longest example",
        "train.data.max_length",
        Number(whole=True, low=2),
        "longer examples are cut off there; more than the model's context is an error",
        how="together",
    ),
    Key(
        "tokenizer_parameters.padding",
        "side of the padding",
        "output.padding_side",
        Choice({"right": "right", "left": "left"}),
        "written into the published tokenizer; packed training rows hold no padding",
    ),
    Key(
        "tokenizer_parameters.add_eos_token",
        "whether an example ends with <eos>",
        "train.data.add_eos",
        Flag(),
        "the token is put at the end of every text and is trained on",
    ),
)

PEFT_KEYS = (
    Key(
        "peft.peft",
        "adapters in place of full fine-tuning",
        "",
        Flag(refused_when=False, remedy="gemfleet trains adapters only; set it to true"),
        "has to be true",
        how="checked",
        default=True,
    ),
    Key(
        "peft.tuner",
        "kind of adapter",
        "",
        Choice({"lora": "lora"}, remedy="gemfleet trains LoRA adapters only; set it to `lora`"),
        "has to be `lora`",
        how="checked",
        default="lora",
    ),
    Key(
        "peft.task_type",
        "peft's name of the task",
        "",
        Choice({"causal_lm": "CAUSAL_LM"}, remedy="Gemma 3 is a causal language model; set it to `CAUSAL_LM`"),
        "has to be `CAUSAL_LM`",
        how="checked",
        default="CAUSAL_LM",
    ),
    Key(
        "peft.bias",
        "which biases are trained",
        "",
        Choice({}, remedy='Gemma 3 has no biases to train; set it to "none"'),
        "has to be none",
        how="checked",
    ),
    Key("peft.r", "rank of the adapters", "train.lora.r", Number(whole=True, low=1, high=4096), "size of the adapters"),
    Key(
        "peft.lora_alpha",
        "scale of the adapters",
        "train.lora.alpha",
        Number(above=0),
        "the update is scaled by lora_alpha / r",
    ),
    Key(
        "peft.lora_dropout",
        "dropout on the adapters' input",
        "train.lora.dropout",
        Number(low=0, high=0.99),
        "regularises the adapters",
    ),
    Key(
        "peft.target_modules",
        "which layers get adapters",
        "train.lora.target_modules",
        Names(),
        "`all-linear` means the language model's, without the vision tower; `lm_head` is refused in any case",
    ),
    Key(
        "peft.quantization",
        "bits of the frozen base",
        "train.quantization",
        Choice({"int4": "int4", "int8": "int8"}),
        "the base is held in 4 or 8 bits; none: in the run's precision",
    ),
    Key(
        "peft.merge_adapter",
        "whether a merged model is wanted too",
        "output.formats",
        Flag(),
        "true adds `merged`: the base with the adapter added, besides the adapter",
        how="together",
    ),
)
