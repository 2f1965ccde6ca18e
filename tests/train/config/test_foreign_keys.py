"""Files of other trainers: every key is answered with its name here, or with why there is none."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.foreign_keys import NAMES, REASONS, _paths, name_here
from gemfleet.train.errors import UserError

# What a LoRA recipe of each looks like: the keys of their published examples.
LLAMA_FACTORY = {
    "model_name_or_path": "google/gemma-3-4b-it", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "identity", "template": "gemma3",
    "cutoff_len": 2048, "max_samples": 1000, "overwrite_cache": True, "preprocessing_num_workers": 16,
    "output_dir": "saves/gemma", "logging_steps": 10, "save_steps": 500, "plot_loss": True, "report_to": "none",
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 180000000, "resume_from_checkpoint": None, "val_size": 0.1, "per_device_eval_batch_size": 1,
    "eval_strategy": "steps", "eval_steps": 500, "quantization_bit": 4, "flash_attn": "fa2", "deepspeed": "ds.json",
}  # fmt: skip
AXOLOTL = {
    "base_model": "google/gemma-3-4b-it", "model_type": "AutoModelForCausalLM", "load_in_4bit": True,
    "datasets": [{"path": "a.jsonl", "type": "chat_template"}], "val_set_size": 0.01, "adapter": "qlora",
    "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_linear": True, "sequence_len": 2048,
    "sample_packing": True, "wandb_project": None, "gradient_accumulation_steps": 4, "micro_batch_size": 2,
    "num_epochs": 4, "optimizer": "adamw_bnb_8bit", "lr_scheduler": "cosine", "tf32": False,
    "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {}, "flash_attention": True, "warmup_steps": 10,
    "evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0, "special_tokens": None, "fsdp": None,
    "max_steps": 10, "seed": 3, "early_stopping_patience": 2, "eval_table_size": 5, "debug": None, "strict": False,
}  # fmt: skip


def problems(folder: Path, content: dict[str, object]) -> dict[str, str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        load_config(folder / "run.yaml")
    lines = str(error.value).splitlines()[1:]
    return {field: said for field, _, said in (line.strip().partition(": ") for line in lines)}


@pytest.mark.parametrize("recipe", [LLAMA_FACTORY, AXOLOTL])
def test_every_key_of_a_recipe_is_answered(tmp_path: Path, recipe: dict[str, object]) -> None:
    said = problems(tmp_path, recipe)
    assert said.pop("train").startswith("missing")
    assert set(said) == set(recipe)
    silent = [
        key for key, text in said.items() if not text.startswith(("unknown key; here it is", "unknown key; leave"))
    ]
    assert silent == []


def test_names_wherever_the_key_stands(tmp_path: Path) -> None:
    train = {"model": "demo", "data": {"train": "demo", "cutoff_len": 5}, "lora": {"lora_rank": 8}, "learning_rate": 1}
    assert problems(tmp_path, {"train": train, "lora_r": 4, "epochs": 2}) == {
        "train.data.cutoff_len": "unknown key; here it is `train.data.max_length`",
        "train.lora.lora_rank": "unknown key; here it is `train.lora.r`",
        "train.learning_rate": "unknown key; here it is `train.optim.learning_rate`",
        "lora_r": "unknown key; here it is `train.lora.r`",
        "epochs": "unknown key; here it is `train.epochs`",
    }


def test_the_table_names_fields_that_exist() -> None:
    paths = set(_paths(LaunchConfig))
    for key, text in NAMES.items():
        named = [text] if " " not in text and "`" not in text else re.findall(r"`([a-z0-9_.]+)", text)
        fields = [name for name in named if "." in name or name in ("cluster", "predict", "name")]
        assert set(fields) <= paths, key
    counted = Counter([*NAMES, *(key for keys in REASONS.values() for key in keys.split())])
    assert [key for key, count in counted.items() if count > 1] == []


def test_a_file_that_is_no_run_has_none_of_these_names() -> None:
    from gemfleet.cluster.bringup.description import ClusterDescription

    assert name_here("lora_r", ClusterDescription) is None
