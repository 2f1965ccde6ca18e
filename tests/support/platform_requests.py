"""The reference request with neutral hosts and paths, and small changes of it."""

from __future__ import annotations

import copy
from typing import Any

REFERENCE: dict[str, Any] = {
    "experiment_name": "caost-test-2",
    "trainer": "sft",
    "save_model": {"type": "git", "model_repository": "git@git.example.org:group/result.git"},
    "dataset": {
        "type": "git",
        "dataset_branch": "main",
        "dataset_repository": "git@git.example.org:group/finance-questions.git",
        "dataset_path": "/platform/input/dataset/group/finance-questions",
    },
    "tokenizer_parameters": {"block_size": 1024, "max_length": 1024, "padding": "right", "add_eos_token": True},
    "model": {
        "type": "git",
        "model_repository": "git@git.example.org:group/gemma-3-4b-it.git",
        "model_branch": "main",
        "model_path": "/platform/input/model/group/gemma-3-4b-it",
    },
    "peft": {
        "target_modules": "all-linear",
        "quantization": "int4",
        "merge_adapter": None,
        "tuner": "lora",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "peft": True,
    },
    "train_model_parameters": {
        "log": "tensorboard",
        "scheduler": "linear",
        "seed": 42,
        "batch_size": 2,
        "output_dir": "/platform/fine-tuning/output",
        "optimizer": "adamw_torch",
        "dataset_text_field": "text",
        "column_mappings": {"prompt_text_column": "", "rejected_text_column": "text", "text_column": "text"},
        "logging_steps": -1,
        "logging_strategy": "epoch",
        "use_flash_attention": False,
        "evaluation_strategy": "epoch",
        "save_total_limit": 1,
        "auto_find_batch_size": True,
        "mixed_precision": "fp16",
        "learning_rate": 3e-05,
        "chat_template": "None",
        "max_prompt_length": None,
        "max_completion_length": None,
        "distributed_backend": "None",
        "num_train_epochs": 1,
        "warmup_ratio": 0.1,
        "weight_decay": 0,
        "max_grad_norm": 1,
        "model_ref": "",
        "dpo_beta": 0.1,
        "use_fsdp2": False,
        "disable_gc": False,
        "unsloth": "false",
        "do_train": True,
        "do_predict": True,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation": 4,
    },
}


class Missing:
    """Marks a key to remove."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()


def changed(**values: Any) -> dict[str, Any]:
    """The reference with some keys changed: `train__seed=1`, `peft__r=8`; MISSING removes one."""
    content = copy.deepcopy(REFERENCE)
    names = {"train": "train_model_parameters", "tokenizer": "tokenizer_parameters"}
    for dotted, value in values.items():
        *sections, last = dotted.split("__")
        inner = content
        for section in sections:
            inner = inner[names.get(section, section)]
        if value is MISSING:
            del inner[last]
        else:
            inner[last] = value
    return content


def supported_request() -> dict[str, Any]:
    """The reference as it stands."""
    return changed()
