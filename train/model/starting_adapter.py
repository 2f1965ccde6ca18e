"""The adapter from which training goes on: found, compared with the configuration and the base, read and loaded.

Its folder has PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`. One that gemfleet wrote also has
`training_config.json`, which knows the base by a digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.paths import HUB_ID, local_path
from ..config.sections.recipe import LoraConfig
from ..errors import UserError
from .weight_files import refuse_pointer

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
CONFIG_FILE = "training_config.json"
ORIGIN_FILE = "origin.json"
FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, CONFIG_FILE, ORIGIN_FILE)
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Options of peft that change what an adapter computes, unless they are empty, false, or `none`.
UNTRAINED = (
    *("bias", "use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"),
    *("use_bdlora", "kasa_config", "monteclora_config", "lora_ga_config"),
    *("alora_invocation_tokens", "arrow_config", "corda_config", "eva_config"),
)
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings of init_lora_weights


@dataclass(frozen=True)
class Origin:
    """digest: of the tensors' file; name: a run and its step, a hub id or an address, for people"""

    digest: str
    name: str


def resolve_adapter_folder(adapter: str) -> Path:
    """The folder of a local path or a hub id, which is fetched. Raises UserError where there is no adapter in it."""
    if local := local_path(adapter):
        return checked_folder(local)
    if not HUB_ID.fullmatch(adapter):
        raise UserError(f"train.adapter is {adapter!r}, which is no folder here and no Hugging Face id; give one")
    from huggingface_hub import snapshot_download

    try:
        return checked_folder(
            Path(snapshot_download(adapter, allow_patterns=[ADAPTER_CONFIG_FILE, ADAPTER_FILE, CONFIG_FILE]))
        )
    except UserError:
        raise
    except Exception as error:  # a network causes many kinds in the libraries below
        raise UserError(
            f"train.adapter {adapter!r} is not a folder here, and cannot be fetched from Hugging Face; check the id, "
            "or the network of the head node"
        ) from error


def checked_folder(folder: Path) -> Path:
    """The folder. Raises UserError unless it holds an adapter's two files, neither of them a pointer."""
    if (folder / "adapter_model.bin").is_file() and not (folder / ADAPTER_FILE).is_file():
        raise UserError(
            f"train.adapter is {folder}, whose adapter_model.bin is a pickle, which is never loaded; save the adapter "
            "as safetensors"
        )
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):
        if not (folder / name).is_file():
            raise UserError(f"train.adapter is {folder}, which has no {name}; give the folder of a PEFT adapter")
        refuse_pointer(folder / name)
    return folder


def origin_of(folder: Path, name: str) -> Origin:
    """The origin of a checked folder: as its own file says it, else by `name`."""
    with (folder / ADAPTER_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    kept = _json(folder / ORIGIN_FILE) if (folder / ORIGIN_FILE).is_file() else {}
    return Origin(digest, str(kept.get("name", name)))


def check_options(folder: Path, lora: LoraConfig) -> None:
    """Raises UserError for options that gemfleet does not train, and for another r or alpha than configured."""
    config = _json(folder / ADAPTER_CONFIG_FILE)
    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"train.adapter is {folder}, of the kind {config['peft_type']}; gemfleet trains LORA only")
    for option in UNTRAINED:
        value = config.get(option)
        if value and value != "none":
            raise UserError(
                f"train.adapter is {folder}, whose {option} is {value}; training goes on from no such adapter. "
                "Merge the adapter into its base, and train a new one on that"
            )
    if str(config.get("init_lora_weights")).lower().startswith(CHANGE_THE_BASE):
        raise UserError(
            f"train.adapter is {folder}, whose init_lora_weights {config['init_lora_weights']!r} changes the base; "
            "convert it to a plain LoRA adapter first, as peft's documentation says"
        )
    for field, now, had in (("r", lora.r, config.get("r")), ("alpha", lora.alpha, config.get("lora_alpha"))):
        if now != had:
            raise UserError(f"train.lora.{field} is {now:g}, but the adapter in {folder} has {had}; give the same")


def check_tensors(folder: Path, base: Any, targets: list[str]) -> None:
    """Raises UserError unless the adapter has both tensors of each target module, in the shapes that the base needs.

    base: its model, which may be empty; targets: full names of its modules, see `lora_targets`
    """
    r, shapes = _json(folder / ADAPTER_CONFIG_FILE)["r"], _shapes(folder / ADAPTER_FILE)
    if odd := next((name for name in shapes if not TENSOR.fullmatch(name)), None):
        raise UserError(f"the adapter in {folder} holds {odd}, which is no LoRA matrix of a linear layer")
    wanted = {}
    for name in targets:
        layer: nn.Linear = base.get_submodule(name)
        wanted[f"base_model.model.{name}.lora_A.weight"] = (r, layer.in_features)
        wanted[f"base_model.model.{name}.lora_B.weight"] = (layer.out_features, r)
    if shapes.keys() != wanted.keys():
        leaves = sorted({found["module"].rpartition(".")[2] for name in shapes if (found := TENSOR.fullmatch(name))})
        lacks, more = len(wanted.keys() - shapes.keys()), len(shapes.keys() - wanted.keys())
        raise UserError(
            f"the adapter in {folder} is on {', '.join(leaves)}; it lacks {lacks} of the {len(wanted)} tensors that "
            f"train.lora.target_modules asks for on train.model, and has {more} others; give the adapter's own modules "
            "and its base"
        )
    if unlike := next((name for name in wanted if shapes[name] != wanted[name]), None):
        raise UserError(
            f"the adapter in {folder} has {shapes[unlike]} for {unlike}, but train.model needs {wanted[unlike]}; give "
            "the base that the adapter was trained on"
        )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file. Raises UserError for a damaged file, and for what is no finite number."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor: Tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or not tensor.float().isfinite().all():
                    raise UserError(f"{path} holds numbers in {name} that are no finite floats; give a sound adapter")
                shapes[name] = tuple(tensor.shape)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the adapter again") from error
    return shapes


def check_its_base(folder: Path, model: str, digest: str) -> str | None:
    """A note where nobody knows whether the adapter was trained on this base. Raises UserError where it was not.

    model: what the person calls the base; digest: of its weights
    """
    made = _json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    made_from = made.get("made_from")
    if trained_on := made_from.get("base") if isinstance(made_from, dict) else None:
        if trained_on != digest:
            raise UserError(
                f"the adapter in {folder} was trained on a base with other weights than train.model {model}; "
                "give that base"
            )
        return None
    named = str(_json(folder / ADAPTER_CONFIG_FILE).get("base_model_name_or_path") or "")
    if named == model:
        return None
    if HUB_ID.fullmatch(named) and HUB_ID.fullmatch(model) and not Path(model).exists():
        raise UserError(
            f"the adapter in {folder} was trained on {named}, but train.model is {model}; give the same base"
        )
    return f"the adapter names its base {named or 'nowhere'}; whether that is train.model {model} is not known"


def load_adapter(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copies the adapter's tensors into a model's parameters, which are fp32 and named as peft names them there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(folder / ADAPTER_FILE)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[saved_name(name)])


def saved_name(name: str) -> str:
    """What peft calls a trained parameter in an adapter's file, by its name in the peft model."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the adapter again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings of an adapter; fetch the adapter again")
    return content
