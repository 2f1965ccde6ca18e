"""The full state of a run in one folder. Its content does not depend on the strategy or the number of ranks.

    adapter_config.json, adapter_model.safetensors   PEFT's layout: loads with peft.PeftModel.from_pretrained
    optimizer.safetensors                            full AdamW state, keys `<parameter name>.<field>`
    trainer_state.json                               transformers' schema, log_history filled
    data_state.json                                  step, epoch and seed: the position in the data
    training_config.json                             the `train` section, versions, and digests of data and base

Each step derives its random numbers from (seed, step, rank), so their only state is the position. No file is a pickle,
and no pickle is read.
"""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..config.schema import TrainConfig
from ..errors import UserError
from ..model.gemma import TrainableModel
from ..model.starting_adapter import saved_name
from ..step.history import best_evaluation
from ..strategies.base import StateDict, Strategy
from .lineage import Lineage, changes_since, refuse_other_shapes

ADAPTER_FILE = "adapter_model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_STATE_FILE = "trainer_state.json"
DATA_STATE_FILE = "data_state.json"
CONFIG_FILE = "training_config.json"
CHECKPOINT_FILES = (
    *("adapter_config.json", ADAPTER_FILE, OPTIMIZER_FILE, TRAINER_STATE_FILE, DATA_STATE_FILE, CONFIG_FILE),
)
UNKNOWN = Lineage()
VERSIONED_PACKAGES = ("gemfleet", "torch", "transformers", "peft", "ray")


@dataclass
class Progress:
    """The position of a run. step: finished optimizer steps; log_history: transformers' list of records"""

    step: int = 0
    epoch: float = 0.0
    total_steps: int = 0
    tokens_seen: int = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)

    def snapshot(self) -> Progress:
        """A copy of the present state. The history's entries are shared: nobody changes one, entries are only added."""
        return replace(self, log_history=list(self.log_history))


def save_checkpoint(
    folder: Path,
    model: TrainableModel,
    adapter: StateDict,
    optimizer: StateDict,
    progress: Progress,
    config: TrainConfig,
    lineage: Lineage = UNKNOWN,
) -> None:
    """Writes gathered state into `folder`, which is made, or is empty. Only one rank needs to call it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, model, adapter)
    save_file(optimizer, folder / OPTIMIZER_FILE, metadata={"format": "pt"})
    _write_json(folder / TRAINER_STATE_FILE, trainer_state(progress, config))
    _write_json(folder / DATA_STATE_FILE, {"step": progress.step, "epoch": progress.epoch, "seed": config.seed})
    made = {
        "train": config.model_dump(mode="json", by_alias=True),
        "versions": versions(),
        "made_from": lineage.facts(),
    }
    _write_json(folder / CONFIG_FILE, made)


def save_adapter(folder: Path, model: TrainableModel, adapter: StateDict) -> None:
    """Writes PEFT's two files. Like `save_pretrained`, it drops peft's inner adapter name from the tensors' names."""
    peft_config = copy.copy(model.peft_model.peft_config["default"])  # training may go on during the write
    peft_config.inference_mode = True
    peft_config.target_modules = sorted(peft_config.target_modules)  # peft has a set, of any order
    peft_config.save_pretrained(str(folder))
    tensors = {saved_name(name): tensor for name, tensor in adapter.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})


def load_checkpoint(
    folder: Path, model: TrainableModel, strategy: Strategy, config: TrainConfig, lineage: Lineage = UNKNOWN
) -> Progress:
    """Restores adapters and optimizer through the strategy. Returns the position to go on from. Collective.

    Raises UserError if the checkpoint's adapters do not fit this configuration, or if the checkpoint was made from
    something else than `lineage` says. Changes that the lineage accepts become an entry of the history.
    """
    made = json.loads((folder / CONFIG_FILE).read_text())
    refuse_other_shapes(folder.name, made, config)
    adapter = _fitting_adapter(folder, model, made)
    changes = changes_since(folder.name, made, config, lineage)
    strategy.restore(adapter, load_file(folder / OPTIMIZER_FILE))
    progress = _read_progress(folder)
    if changes:
        entry = {"epoch": progress.epoch, "step": progress.step, "accepted_changes": changes}
        progress.log_history.append(entry)
    return progress


def _fitting_adapter(folder: Path, model: TrainableModel, made: dict[str, Any]) -> StateDict:
    """The checkpoint's adapter tensors by the names of the model's parameters."""
    saved, wanted = load_file(folder / ADAPTER_FILE), full_shapes(model)
    adapter = {name: saved[short] for name in wanted if (short := saved_name(name)) in saved}
    if len(adapter) < len(wanted) or len(saved) > len(adapter):
        targets = made["train"]["lora"]["target_modules"]
        raise UserError(
            f"the checkpoint {folder.name} holds {len(saved)} adapter tensors, this run has {len(wanted)}, of which "
            f"{len(adapter)} are the same; resume with train.lora.target_modules as it was written with: {targets}"
        )
    unlike = next((name for name, tensor in adapter.items() if tuple(tensor.shape) != wanted[name]), None)
    if unlike is not None:
        raise UserError(
            f"the checkpoint {folder.name} holds {tuple(adapter[unlike].shape)} for {unlike}, this run has "
            f"{wanted[unlike]}; resume with the base (train.model) and the train.lora section it was written with"
        )
    return adapter


def full_shapes(model: TrainableModel) -> dict[str, tuple[int, ...]]:
    """The shapes of the whole adapters by name. Under ZeRO-3 a rank holds a share, and DeepSpeed knows the shape."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.adapter_parameters().items()}


def _read_progress(folder: Path) -> Progress:
    state = json.loads((folder / TRAINER_STATE_FILE).read_text())
    position = json.loads((folder / DATA_STATE_FILE).read_text())
    return Progress(
        step=position["step"],
        epoch=position["epoch"],
        total_steps=state["max_steps"],
        tokens_seen=state["num_input_tokens_seen"],
        log_history=state["log_history"],
    )


def trainer_state(progress: Progress, config: TrainConfig) -> dict[str, Any]:
    """The content of `trainer_state.json`, which transformers' `TrainerState.load_from_json` can read."""
    best_step, best_loss = best_evaluation(progress.log_history) or (None, None)
    return {
        "best_global_step": best_step,
        "best_metric": best_loss,
        "best_model_checkpoint": None if best_step is None else f"checkpoint-{best_step}",
        "epoch": progress.epoch,
        "eval_steps": config.evaluation.every if isinstance(config.evaluation.every, int) else 0,
        "global_step": progress.step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": progress.log_history,
        "logging_steps": 1,
        "max_steps": progress.total_steps,
        "num_input_tokens_seen": progress.tokens_seen,
        "num_train_epochs": config.epochs,
        "save_steps": config.checkpoint.every if isinstance(config.checkpoint.every, int) else 0,
        "stateful_callbacks": {},
        "total_flos": 0,
        "train_batch_size": config.batch.rows_per_pass,
        "trial_name": None,
        "trial_params": None,
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages on which a checkpoint depends, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
