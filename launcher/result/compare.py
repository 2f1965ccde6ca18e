"""Compares what is about to be published with the training loop, in one actor with a rank's resources."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import ray.exceptions
from gemfleet.cluster.staging.stage import bring_folder
from gemfleet.launcher.placement import Placement
from gemfleet.train.config.home import cache_folder
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.cpu import hide_gpus
from gemfleet.train.device.out_of_memory import is_out_of_memory
from gemfleet.train.errors import first_line
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.base_check import load_tokenizer
from gemfleet.train.model.compare import compare_published
from gemfleet.train.model.comparison import Comparison
from gemfleet.train.model.predict import Question, questions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .card.model_card import MERGED_FOLDER
from .predict import ADAPTER_FILES, base_here, write_files
from .tokenizer_files import GENERATION_FILE

PUBLISHED_FILES = (*ADAPTER_FILES, GENERATION_FILE)  # what peft and `generate` read of a published adapter


class CannotCompareError(RuntimeError):
    """The comparison could not be made: it says nothing about the result."""


class ComparingRank:
    """The actor in the place of one rank."""

    def __init__(self, folders: Mapping[str, str], train: TrainConfig, on_gpu: bool) -> None:
        if not on_gpu:
            hide_gpus()
        self._base, self._train = base_here(folders), train

    def place(self) -> str:
        """The id of this actor's node."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def prompts(self, source: BlockSource, ranks: int, count: int, answer_after: str) -> tuple[list[Question], str]:
        self._source = source
        last = self._train.total_steps(source.steps_per_epoch) - 1
        return prompts_of(source, ranks, last, count, load_tokenizer(self._base), answer_after)

    def compare(
        self,
        trained: Mapping[str, bytes],
        published: Mapping[str, bytes],
        merged: str | None,
        prompts: list[Question],
        source: str,
    ) -> Comparison:
        """Call `prompts` first: it brings the source of their pictures."""
        with TemporaryDirectory(prefix="gemfleet-compare-") as folder:
            places = Path(folder) / "trained", Path(folder) / "published"
            for place, files in zip(places, (trained, published), strict=True):
                place.mkdir()
                write_files(place, files)
            there = None if merged is None else Path(merged)
            return compare_published(self._base, *places, there, self._train, prompts, source, pictures=self._source)

    def forget(self, folder: str) -> None:
        """Remove the copy of a merged model."""
        shutil.rmtree(folder, ignore_errors=True)


def prompts_of(
    source: BlockSource, ranks: int, last_step: int, count: int, tokenizer: object, answer_after: str
) -> tuple[list[Question], str]:
    """At most `count` prompts of the evaluation sets, or of the last step's rows where there are none.

    The second value says of which. A run that moved may hold the rows of its last steps only.
    """
    if source.eval_sets:
        parts = (source.eval_rows(rank, name) for name in source.eval_sets for rank in range(ranks))
    else:
        position = divmod(last_step, source.steps_per_epoch)
        parts = (source.step(*position, rank).rows for rank in range(ranks))
    found: list[Question] = []
    for rows in parts:
        if len(found) < count:
            found += questions(rows, tokenizer, answer_after)
    return found[:count], "the evaluation set" if source.eval_sets else "the training set"


def compare_on_cluster(
    source: BlockSource,
    checkpoint: Path,
    published: Path,
    folders: Mapping[str, str],
    placement: Placement,
    train: TrainConfig,
    count: int,
    answer_after: str,
) -> Comparison:
    """Compare the published forms with the training loop on `count` prompts, on this node if it has room for a rank.

    checkpoint: what was trained; published: the folder to be, with `merged/` or without
    folders: the base's folder on each node, by node id
    Raises CannotCompareError where memory runs out, the node is lost or there is no prompt.
    """
    resources = placement.resources_per_rank()
    here = ray.get_runtime_context().get_node_id()
    actor = (
        ray.remote(ComparingRank)
        .options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )
        .remote(dict(folders), train, placement.gpus_per_rank > 0)
    )
    try:
        prompts, name = ray.get(actor.prompts.remote(source, train.data_ranks(placement.ranks), count, answer_after))
        if not prompts:
            raise CannotCompareError(f"{name} has no prompt with an answer")
        trained = {file: (checkpoint / file).read_bytes() for file in ADAPTER_FILES}
        files = {file: (published / file).read_bytes() for file in PUBLISHED_FILES}
        own, node = (published / MERGED_FOLDER).resolve(), ray.get(actor.place.remote())
        merged = bring_folder(own, str(cache_folder("staged")), node) if own.is_dir() else None
        try:
            comparison: Comparison = ray.get(actor.compare.remote(trained, files, merged, prompts, name))
        finally:
            if merged not in (None, str(own)):
                ray.get(actor.forget.remote(merged))
        return comparison
    except ray.exceptions.RayTaskError as error:
        if is_out_of_memory(error.cause or error):
            raise CannotCompareError(f"memory ran out ({first_line(error.cause or error)})") from error
        raise
    except ray.exceptions.RayActorError as error:
        raise CannotCompareError("its process was lost; most likely memory ran out") from error
    finally:
        ray.kill(actor)
