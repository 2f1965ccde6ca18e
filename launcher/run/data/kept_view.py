"""Keeps a description of a run's prepared data in the run's folder, for the API and the board."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import ray
from gemfleet.launcher.data_view.describe import describe, describe_set
from gemfleet.launcher.data_view.pictures import thumbnails
from gemfleet.launcher.data_view.spans import example_of
from gemfleet.launcher.data_view.tokenizer import quick_tokenizer
from gemfleet.launcher.data_view.view import DataView, Example
from gemfleet.launcher.runs.folder import DATA_FILE
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import TokenBlock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .tokenise import PreparedData

EXAMPLES = 4
WAIT_SECONDS = 60.0  # for the examples; without them the description is kept all the same
Found = tuple[Example, list[int]]  # an example, and the ids of its pictures
Place = tuple[str, int, int]  # an example's name, its block, and its index there


def ask_examples(prepared: PreparedData, folders: Mapping[str, str]) -> Any:
    """A reference to the texts of a few examples, which a node with the tokenizer makes beside other work.

    Of a data set of one chunk the driver makes them, sooner than a process of Ray's would start.
    """
    train, starts = prepared.train, prepared.tokenised.starts
    places: list[Place] = []
    for number in np.unique(np.linspace(0, len(train) - 1, EXAMPLES).astype(int)).tolist():
        block = int(np.searchsorted(starts, train[number], side="right")) - 1
        places.append((_name(prepared, number), block, int(train[number] - starts[block])))
    blocks = {block: prepared.tokenised.blocks[block] for _, block, _ in places}
    if len(prepared.tokenised.blocks) == 1 and ray.get_runtime_context().get_node_id() in folders:
        with suppress(Exception):  # as in `keep_view`
            return ray.put(examples_task(blocks, places, folders))
    where = NodeAffinitySchedulingStrategy(min(folders), soft=True)
    task = ray.remote(examples_task).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    return task.remote(blocks, places, dict(folders))


def _name(prepared: PreparedData, number: int) -> str:
    """What an example is called, by its index in `PreparedData.train`."""
    sizes = prepared.mixture.sizes
    owner = int(np.searchsorted(np.cumsum(sizes), number, side="right"))
    name = f"example {number - sum(sizes[:owner]) + 1:,} of {sizes[owner]:,}"
    return name if len(sizes) == 1 else f"{prepared.sets[owner].name}, {name}"


def examples_task(blocks: Mapping[int, Any], places: Sequence[Place], folders: Mapping[str, str]) -> list[Found]:
    """The texts of some examples, and the ids of their pictures. blocks: references to their `TokenBlock`s"""
    tokenizer = quick_tokenizer(Path(folders[ray.get_runtime_context().get_node_id()]))
    found = []
    for name, number, index in places:
        block: TokenBlock = ray.get(blocks[number])
        one = block.select([index])
        found.append((example_of(name, one, tokenizer), one.pictures.tolist()))
    return found


def keep_view(run_folder: Path, train: TrainConfig, prepared: PreparedData, ranks: int, examples: Any) -> Thread:
    """Write the description, and once more when the examples have come. A run goes on where this fails.

    examples: the reference of `ask_examples`. Returns the thread that waits for them.
    """
    epoch = prepared.tokenised.counts[prepared.train[prepared.mixture.order(train.seed, 0)]]
    sets = [describe_set("train", one) for one in prepared.sets]
    sets += [describe_set("eval", one) for one in prepared.eval_sets]
    notes = [note for one in (*prepared.sets, *prepared.eval_sets) for note in one.notes]
    view = describe(train, ranks, sets, epoch, notes)
    _write(run_folder, view)

    def add_examples() -> None:
        with suppress(Exception):  # a node that died, or a tokenizer no package reads: the run itself tells of those
            found: list[Found] = ray.get(examples, timeout=WAIT_SECONDS)
            shown = [one.model_copy(update={"pictures": _small(prepared, ids)}) for one, ids in found]
            _write(run_folder, view.model_copy(update={"examples": shown}))

    waits = Thread(target=add_examples, name="gemfleet-data-view", daemon=True)  # the ranks start meanwhile
    waits.start()
    return waits


def _small(prepared: PreparedData, ids: Sequence[int]) -> list[str]:
    return thumbnails(ray.get(prepared.pictures[identity], timeout=WAIT_SECONDS) for identity in ids)


def _write(run_folder: Path, view: DataView) -> None:
    new = run_folder / f".{DATA_FILE}.new"
    with suppress(OSError):  # the disk is full: the run waits for room where it has to
        new.write_text(view.model_dump_json(), encoding="utf-8")
        os.replace(new, run_folder / DATA_FILE)
