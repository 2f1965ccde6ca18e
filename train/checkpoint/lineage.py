"""Records what a checkpoint was made from, and compares it when a run goes on from there.

The steps and tensors of a checkpoint are of use only with the data, base and adapters that they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.schema import TrainConfig
from ..data.digest import DataDigest
from ..errors import UserError
from ..model.starting_adapter import Origin
from ..model.weight_files import StoredTensor, stored_tensors

SAMPLE_BYTES = 4096  # so many are read at the start of each tensor of a base, and in its middle


NEW = Origin("", "a new adapter")


@dataclass(frozen=True)
class Lineage:
    """What a run is made from. base: see `base_digest`; adapter: with which training began; None: not known

    accept_changes: go on from a checkpoint that was made from something else
    """

    base: str | None = None
    data: DataDigest | None = None
    accept_changes: bool = False
    adapter: Origin | None = None

    def facts(self) -> dict[str, Any]:
        """The part that a checkpoint stores."""
        began = None if self.adapter in (None, NEW) else asdict(self.adapter)
        return {"base": self.base, "data": None if self.data is None else asdict(self.data), "adapter": began}


def base_digest(folder: Path) -> str:
    """A digest of a base's weights: names, shapes, and a sample of the bytes. The division into files has no effect."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(stored_tensors(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        first = file.read(min(SAMPLE_BYTES, tensor.nbytes))
        file.seek(tensor.start + tensor.nbytes // 2)
        return first + file.read(min(SAMPLE_BYTES, tensor.nbytes - tensor.nbytes // 2))


def refuse_other_shapes(name: str, saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Raises UserError for a change that no run can accept, since steps or tensors of the checkpoint would be useless.

    name: the checkpoint's, for the sentence; saved: the content of its training_config.json
    """
    train = saved["train"]
    fixed = (
        ("train.lora.r", train["lora"]["r"], config.lora.r, "tensors have its size"),
        ("train.seed", train["seed"], config.seed, "it decides the order of the examples"),
        ("train.batch.global", train["batch"]["global"], config.batch.global_, "steps count it"),
        ("train.vision.train", train.get("vision", {}).get("train", "none"), config.vision.train, "it has its tensors"),
    )
    for field, before, now, why in fixed:
        if before != now:
            raise UserError(
                f"{field} is {now}, but the checkpoint {name} was written with {before}; resume with the same, as {why}"
            )


def changes_since(name: str, saved: Mapping[str, Any], config: TrainConfig, lineage: Lineage) -> list[str]:
    """A sentence for each change. Raises UserError if there is one and the lineage accepts none."""
    found = [*_other_settings(saved["train"], config), *_other_inputs(saved.get("made_from", {}), lineage)]
    if found and not lineage.accept_changes:
        raise UserError(
            f"the checkpoint {name} was made from something else: {'; '.join(found)}. Resume with what it was made "
            "from, or go on all the same with --accept-changes"
        )
    return found


def _other_settings(train: Mapping[str, Any], config: TrainConfig) -> list[str]:
    fields: list[tuple[str, Any, Any]] = [
        ("train.lora.alpha", train["lora"]["alpha"], config.lora.alpha),
        ("train.quantization", train.get("quantization", "none"), config.quantization),
    ]
    if config.data.eval is None and train["data"].get("eval") is None:
        fields.append(("train.data.eval_fraction", train["data"]["eval_fraction"], config.data.eval_fraction))
    elif (config.data.eval is None) != (train["data"].get("eval") is None):
        fields.append(("train.data.eval", train["data"].get("eval"), config.data.eval))
    return [f"{field} is {now}, it was {before}" for field, before, now in fields if before != now]


def _other_inputs(made_from: Mapping[str, Any], lineage: Lineage) -> list[str]:
    found = []
    if made_from.get("base") and lineage.base and made_from["base"] != lineage.base:
        found.append("the weights of the base (train.model) are other ones")
    before = Origin(**made_from["adapter"]) if made_from.get("adapter") else NEW
    if lineage.adapter is not None and before.digest != lineage.adapter.digest:
        found.append(f"training began with {before.name}, now train.adapter is {lineage.adapter.name}")
    if made_from.get("data") and lineage.data:
        found += _other_data(DataDigest(**made_from["data"]), lineage.data)
    return found


def _other_data(before: DataDigest, now: DataDigest) -> list[str]:
    found = []
    if before.examples != now.examples:
        found.append(f"the data has changed: it has {now.examples:,} examples, it had {before.examples:,}")
    elif before.unordered != now.unordered:
        found.append("the data has changed: as many examples, but other ones")
    elif before.ordered != now.ordered:
        found.append("the data has changed: the same examples are in another order")
    elif before.mixture != now.mixture:
        sets, had = now.mixture or "one set", before.mixture or "one set"
        found.append(f"the mixture of train.data.train has changed: it is {sets}, it was {had}")
    if None not in (before.evaluation, now.evaluation) and before.evaluation != now.evaluation:
        found.append("the examples of train.data.eval have changed")
    return found
