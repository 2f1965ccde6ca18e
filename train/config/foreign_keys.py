"""Translates the keys of LLaMA-Factory's and Axolotl's files, for people who bring such a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import get_args

from pydantic import BaseModel

GLOBAL = "`train.batch.global`, which is micro-batch times accumulation times GPUs there: examples of a whole step"
# The field, if its value means the same; else a few words that name it.
NAMES: dict[str, str] = {
    "model_name_or_path": "train.model",
    "base_model": "train.model",
    "dataset": "train.data.train",
    "datasets": "train.data.train",
    "eval_dataset": "train.data.eval",
    "test_datasets": "train.data.eval",
    "val_size": "train.data.eval_fraction",
    "val_set_size": "train.data.eval_fraction",
    "cutoff_len": "train.data.max_length",
    "sequence_len": "train.data.max_length",
    "max_seq_length": "train.data.max_length",
    "model_max_length": "train.data.max_length",
    "max_samples": "train.data.limit",
    "template": "`train.data.chat_template`: `gemma`, `tokenizer` or a Jinja file; gemma3's is `gemma`",
    "chat_template": "`train.data.chat_template`: `gemma`, `tokenizer` or a Jinja file; gemma3's is `gemma`",
    "chat_template_jinja": "`train.data.chat_template`, which takes a template or its file",
    "formatting": "train.data.format",
    "field_messages": "train.data.columns.messages",
    "message_field_role": "train.data.columns.role",
    "message_field_content": "train.data.columns.content",
    "mask_history": "`train.data.train_on: last`",
    "train_on_prompt": "train.data.supervise_prompt",
    "train_on_inputs": "train.data.supervise_prompt",
    "roles_to_train": "`train.data.train_on`; the assistant's answers alone are trained on",
    "excess_length_strategy": "train.data.too_long",
    "lora_rank": "train.lora.r",
    "lora_r": "train.lora.r",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.dropout",
    "lora_target": "train.lora.target_modules",
    "lora_target_modules": "train.lora.target_modules",
    "lora_target_linear": "`train.lora.target_modules: all-linear`",
    "per_device_train_batch_size": GLOBAL,
    "micro_batch_size": GLOBAL,
    "batch_size": GLOBAL,
    "train_batch_size": GLOBAL,
    "gradient_accumulation_steps": GLOBAL,
    "per_device_eval_batch_size": "train.evaluation.micro",
    "eval_batch_size": "train.evaluation.micro",
    "auto_find_batch_size": "`train.batch.micro: auto`",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "lr": "train.optim.learning_rate",
    "lr_scheduler_type": "train.optim.schedule",
    "lr_scheduler": "train.optim.schedule",
    "warmup_steps": "`train.optim.warmup_ratio`, a share of all steps",
    "adam_beta1": "`train.optim.betas`, a list of both",
    "adam_beta2": "`train.optim.betas`, a list of both",
    "adam_epsilon": "train.optim.eps",
    "gradient_clipping": "train.optim.max_grad_norm",
    "bf16": "`train.precision: bf16`",
    "fp16": "`train.precision`; Gemma 3 overflows fp16, so `auto` takes bf16 or fp32",
    "pure_bf16": "`train.precision: bf16`",
    "tf32": "`train.precision`",
    "float16": "`train.precision`; Gemma 3 overflows fp16, so `auto` takes bf16 or fp32",
    "bfloat16": "`train.precision: bf16`",
    "quantization_bit": "`train.quantization: int4` or `int8`",
    "load_in_4bit": "`train.quantization: int4`",
    "load_in_8bit": "`train.quantization: int8`",
    "flash_attn": "train.attention",
    "flash_attention": "train.attention",
    "sdp_attention": "train.attention",
    "context_parallel_size": "train.context_parallel",
    "sequence_parallel_degree": "train.context_parallel",
    "sequence_parallel_size": "train.context_parallel",
    "attn_implementation": "train.attention",
    "torch_compile": "train.compile",
    "gradient_checkpointing_kwargs": "`train.activation_checkpointing`: `off`, `selective` or `full`",
    "gradient_checkpointing": "`train.activation_checkpointing`: `off`, `selective` or `full`",
    "disable_gradient_checkpointing": "`train.activation_checkpointing: off`",
    "fsdp": "`train.strategy: fsdp2`",
    "fsdp_config": "`train.strategy: fsdp2` with the section `train.fsdp2`",
    "ds_config": "`train.strategy: deepspeed` with `train.deepspeed.config`",
    "deepspeed": "`train.strategy: deepspeed` with `train.deepspeed.config`",
    "save_steps": "train.checkpoint.every",
    "save_strategy": "train.checkpoint.every",
    "saves_per_epoch": "`train.checkpoint.every`, a number of steps or `epoch`",
    "early_stopping_patience": "train.early_stopping.patience",
    "early_stopping_steps": "`train.early_stopping.patience`, a number of evaluations",
    "save_total_limit": "cluster.keep_checkpoints",
    "eval_steps": "train.evaluation.every",
    "eval_strategy": "train.evaluation.every",
    "evaluation_strategy": "train.evaluation.every",
    "evals_per_epoch": "`train.evaluation.every`, a number of steps or `epoch`",
    "logging_steps": "train.logging.every",
    "logging_strategy": "train.logging.every",
    "run_name": "name",
    "ray_run_name": "name",
    "ray_num_workers": "cluster.workers",
    "num_gpus": "cluster.workers",
    "placement_strategy": "cluster.placement",
    "ray_storage_path": "cluster.storage",
    "ray_init_kwargs": "the section `cluster`",
    "resources_per_worker": "`cluster.cpus_per_worker` and `cluster.gpus_per_worker`",
    "predict_with_generate": "the section `predict`",
    "do_predict": "the section `predict`",
    "hub_model_id": "`output.deliver` with `type: hub` and `repository`",
    "push_to_hub": "`output.deliver` with `type: hub` and `repository`",
    "push_to_hub_model_id": "`output.deliver` with `type: hub` and `repository`",
    "merge_lora": "`output.formats: [adapter, merged]`",
    "merge": "`output.formats: [adapter, merged]`, which writes a merged model too",
    "resume_from_checkpoint": "no key; give `--resume RUN`, or `gemfleet resume RUN`",
    "auto_resume_from_checkpoints": "no key; give `--resume latest`, or `gemfleet resume RUN`",
    "output_dir": "no key: results lie below $GEMFLEET_HOME/runs; `output.deliver` takes them elsewhere",
    "export_dir": "no key: `output.formats: [adapter, merged]` writes a merged model into the result",
    "logging_dir": "no key: TensorBoard's files lie in the run's folder",
}
# Reasons to leave a key out, each with its keys, separated by spaces.
REASONS: dict[str, str] = {
    "rows are always packed": "packing neat_packing sample_packing eval_sample_packing multipack_real_batches",
    "rows are packed and hold no padding": ("pad_to_sequence_len pad_to_max_length group_by_length length_column_name"),
    "a system text is a message, or the column `system`": "default_system",
    "tools are told as Gemma's documentation does; another way is a template of your own": "tool_format",
    "the shape is recognised by the columns (else `train.data.format`)": "conversation",
    "the end of an answer is trained on with it": "train_on_eos",
    "gemfleet does supervised fine-tuning alone (ZeRO's stage is `train.deepspeed.stage`)": "stage",
    "gemfleet does supervised fine-tuning alone": "do_train do_eval rl pref_beta pref_loss",
    "gemfleet trains LoRA adapters alone": "finetuning_type adapter peft_type",
    "adapters are plain LoRA": (
        "use_dora peft_use_dora use_rslora peft_use_rslora loraplus_lr_ratio lora_fan_in_fan_out pissa_init"
    ),
    "adapters of the language model's projections alone are trained": (
        "additional_target lora_modules_to_save modules_to_save unfrozen_parameters freeze_vision_tower "
        "freeze_multi_modal_projector"
    ),
    "a run begins with new adapters; `gemfleet resume RUN` goes on with a run's own": (
        "adapter_name_or_path lora_model_dir"
    ),
    "the optimizer is AdamW; its section is `train.optim`": "optim optimizer optim_args",
    "int4 is NF4 with double quantisation, by bitsandbytes": (
        "quantization_method quantization_type double_quantization bnb_4bit_quant_type "
        "bnb_4bit_use_double_quant bnb_4bit_compute_dtype"
    ),
    "the model's folder says it": (
        "model_type tokenizer_type processor_type tokenizer_config special_tokens tokens rope_scaling"
    ),
    "no code of a model is ever run": "trust_remote_code",
    "set HF_TOKEN in the environment": "hf_hub_token hf_use_auth_token use_auth_token hub_token",
    "paths in `train.model` and `train.data` are taken as they are": "dataset_dir media_dir cache_dir",
    "data is read once, by the head": (
        "streaming mix_strategy interleave_probs tokenized_path dataset_prepared_path shuffle_merged_datasets "
        "dataset_exact_deduplication"
    ),
    "`train.seed` decides the order of the data too": "data_seed",
    "the cluster decides it": (
        "ddp_timeout ddp_find_unused_parameters local_rank preprocessing_num_workers dataset_processes "
        "dataset_num_proc dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
        "low_cpu_mem_usage device_map max_memory"
    ),
    "each run has a folder of its own, and checkpoints hold everything as safetensors": (
        "overwrite_cache overwrite_output_dir save_only_model save_safetensors save_on_each_node"
    ),
    "curves are always written": (
        "report_to use_tensorboard plot_loss logging_first_step include_num_input_tokens_seen include_tokens_per_second"
    ),
    "Weights & Biases, MLflow and Comet are not written to": (
        "wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model use_wandb "
        "mlflow_tracking_uri mlflow_experiment_name use_mlflow use_comet use_swanlab"
    ),
    "the fastest kernels that are there are taken": (
        "enable_liger_kernel use_liger_kernel liger_rope liger_rms_norm liger_glu_activation liger_layer_norm "
        "liger_fused_linear_cross_entropy use_unsloth plugins xformers_attention shift_attn"
    ),
    "the best checkpoint by evaluation loss is published (`output.checkpoint`)": (
        "load_best_model_at_end metric_for_best_model"
    ),
    "gemfleet has nothing like it": (
        "neftune_noise_alpha noisy_embedding_alpha cosine_min_lr_ratio label_smoothing label_smoothing_factor "
        "loss_watchdog_threshold loss_watchdog_patience eval_table_size strict debug"
    ),
}
NEEDLESS = {key: reason for reason, keys in REASONS.items() for key in keys.split()}


def name_here(key: str, model: type[BaseModel]) -> str | None:
    """What to do with a key of another trainer's file, or of another section of ours; None for an unknown key.

    model: the model of the whole file. If it has no `train` section, the file describes no run: None for every key.
    """
    if "train" not in model.model_fields:
        return None
    if key in NEEDLESS:
        return f"leave it out: {NEEDLESS[key]}"
    own = [path for path in _paths(model) if path.rpartition(".")[2] == key]
    here = NAMES.get(key)
    if here is None and len(own) == 1:
        here = own[0]
    if here is None:
        return None
    return f"here it is {here}" if " " in here or "`" in here else f"here it is `{here}`"


@cache
def _paths(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(_walk(model, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The dotted path of every field of a model and of the sections in it."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _walk(kind, f"{path}.")
