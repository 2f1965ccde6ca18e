"""Tokenises a run's data on the cluster. Ray tasks do the work, and the tokens stay in the object store.

The driver reads the rows. It holds lengths and references, never tokens. Ranks get the same rows as from
`train/local/source.py`, which prepares data without Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataSet
from gemfleet.train.data.digest import Digests, run_digest
from gemfleet.train.data.mixture import Mixture, divide
from gemfleet.train.data.packing import Ints
from gemfleet.train.data.pictures.files import PictureFiles
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.pictures.pixel_file import PixelFile
from gemfleet.train.data.pictures.rows import picture_files, with_pictures
from gemfleet.train.data.prepared.store import PreparedCache, PreparedSet, Seen
from gemfleet.train.data.readers import Row, open_set
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import choose_format
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import chunks
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .node_tasks import Summary, tokenise_here, tokenise_task

if TYPE_CHECKING:
    from rich.progress import Progress

PENDING_PER_CPU = 2  # tasks in flight, so that the driver does not read far ahead of the cluster


@dataclass(frozen=True)
class TokenisedSet:
    """A tokenised data set in the object store, or several, one after the other.

    blocks: a reference to a `TokenBlock` for each chunk of rows, in the order of the data
    starts: int64 [blocks + 1], the number of examples before each block
    counts: of each example, see `TokenBlock.counts`
    digests: of the examples of each block
    pictures: by its id, a reference to the pixels of each picture
    phases: of the processes that tokenised it, see `Phases.taken`
    """

    blocks: list[Any]
    starts: Ints
    counts: Ints
    digests: list[Digests]
    pictures: dict[int, Any] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def joined(sets: Sequence[TokenisedSet]) -> TokenisedSet:
        """All examples of the sets, in order."""
        sizes = [np.diff(one.starts) for one in sets]
        return TokenisedSet(
            [block for one in sets for block in one.blocks],
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes), dtype=np.int64)]),
            np.concatenate([one.counts for one in sets]),
            [digests for one in sets for digests in one.digests],
            {identity: pixels for one in sets for identity, pixels in one.pictures.items()},
            [line for one in sets for line in one.phases],
        )


@dataclass(frozen=True)
class PreparedData:
    """Tokenised examples and their use.

    train: int64, the indices of those to train on, set by set; mixture: of these sets, with indices into `train`
    evaluation: by the name of each evaluation set, a tokenised set and the indices of its examples to score
    report: of the whole run; sets, eval_sets: of each set to train on, and of each of `train.data.eval`
    reused: the sets that came from the cache
    pictures: see `TokenisedSet`, of all sets
    """

    tokenised: TokenisedSet
    train: Ints
    mixture: Mixture
    evaluation: dict[str, tuple[TokenisedSet, Ints]]
    report: DataReport
    sets: tuple[DataReport, ...]
    eval_sets: tuple[DataReport, ...]
    reused: tuple[str, ...] = ()

    @property
    def pictures(self) -> dict[int, Any]:
        sets = [self.tokenised, *(found for found, _ in self.evaluation.values())]
        return {identity: pixels for found in sets for identity, pixels in found.pictures.items()}

    @property
    def phases(self) -> list[dict[str, Any]]:
        """See `TokenisedSet`, of all sets."""
        scored = [found for found, _ in self.evaluation.values() if found is not self.tokenised]
        return [line for found in (self.tokenised, *scored) for line in found.phases]


def tokenise_on_cluster(
    config: TrainConfig,
    tokenizer_folders: Mapping[str, str],
    progress: Progress | None = None,
    cache: PreparedCache | None = None,
    pictures: PictureFormat | None = None,
) -> PreparedData:
    """Read the data on this node, tokenise it on the cluster, and split off the evaluation sets.

    tokenizer_folders: for each Ray node id (hex) that may work, the folder there with the tokenizer
    cache: where a set that was tokenised before is found, and a new one is kept; None: nowhere
    pictures: as the model sees them; None: it does not
    Raises UserError when a set has no example left, or when no node with the tokenizer has a CPU.
    """
    data = config.data
    sets, eval_sets = data.train_sets(), data.eval_sets()
    reused: list[str] = []

    def tokenise(one: DataSet) -> tuple[TokenisedSet, DataReport]:
        files = picture_files(one)
        make = partial(_tokenise, one, tokenizer_folders, progress, pictures, files)
        if cache is None:
            return make()
        key = cache.key(one)
        with cache.alone(key):
            kept = cache.find(key, one)
            if kept is not None:
                reused.append(one.path)
                return _from_cache(kept, one)
            found, report = make()
            if key is not None and _may_be_kept(found, files, pictures, cache.store.limit_bytes):
                with suppress(OSError):  # the disk is full: a cache may fail, a run may not
                    seen, digests = _seen(found, files), np.concatenate(found.digests)
                    cache.save(key, map(ray.get, found.blocks), digests, report, seen)
        return found, report

    found, reports = zip(*map(tokenise, sets), strict=True)
    scored = [tokenise(one) for one in eval_sets]
    fraction = 0.0 if eval_sets else data.eval_fraction
    division = divide(sets, [one.counts for one in found], fraction, config.seed, reports)
    tokenised = TokenisedSet.joined(found)
    evaluation = {name: (tokenised, held_out) for name, held_out in division.held_out.items()}
    for one, (evaluated, _) in zip(eval_sets, scored, strict=True):
        evaluation[one.name] = (evaluated, np.arange(len(evaluated.counts), dtype=np.int64))
    eval_reports = tuple(part for _, part in scored)
    report = DataReport.of_run(data.spoken(), reports, eval_reports)
    eval_digests = [digests for evaluated, _ in scored for digests in evaluated.digests]
    report.digest = run_digest(tokenised.digests, division.mixture.describe(), eval_digests)
    return PreparedData(
        tokenised, division.train, division.mixture, evaluation, report, tuple(reports), eval_reports, tuple(reused)
    )


def _from_cache(kept: PreparedSet, data: DataSet) -> tuple[TokenisedSet, DataReport]:
    """A kept set, put into the object store block by block. Raises UserError as `_tokenise` does."""
    kept.report.check(data.section)
    blocks, sizes, counts = [], [], []
    for block in kept.blocks():
        blocks.append(ray.put(block))
        sizes.append(len(block))
        counts.append(block.counts)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    digests = np.split(kept.digests, starts[1:-1])
    pixels = kept.pixels
    pictures = {identity: ray.put(pixels.pixels(identity)) for identity in pixels.ids.tolist()} if pixels else {}
    found = TokenisedSet(blocks, starts, np.concatenate(counts), digests, pictures)
    kept.report.count(found.counts)
    return found, kept.report


def _may_be_kept(found: TokenisedSet, files: PictureFiles, pictures: PictureFormat | None, limit_bytes: int) -> bool:
    """Whether the cache may take a set, asked before all of its pictures come to this node."""
    height, width = pictures.size if pictures else (0, 0)
    return not files.fetched and 3 * height * width * len(found.pictures) <= limit_bytes


def _seen(found: TokenisedSet, files: PictureFiles) -> Seen:
    """The pictures of a set for the cache, fetched one by one."""
    pixels: PixelFile | None = None
    for identity, reference in found.pictures.items():
        one = ray.get(reference)
        pixels = pixels or PixelFile.temporary(one.shape[1:])
        pixels.add(identity, one)
    return Seen(pixels, files)


def _tokenise(
    data: DataSet,
    folders: Mapping[str, str],
    progress: Progress | None,
    pictures: PictureFormat | None,
    files: PictureFiles,
) -> tuple[TokenisedSet, DataReport]:
    """Tokenise one data set. Raises UserError if it has no example left."""
    report = DataReport.of_set(data)
    parts = _tokenise_chunks(data, folders, report, progress, pictures, files)
    summaries: list[Summary] = _get([summary for _, summary, *_ in parts])
    for found in summaries:
        report.merge(found.report)
    counts = np.concatenate([np.empty((0, 3), np.int64), *(found.counts for found in summaries)])
    report.count(counts)
    report.check(data.section)
    sizes = [len(found.counts) for found in summaries]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    pixels: dict[int, Any] = {}
    for (_, _, *references), found in zip(parts, summaries, strict=True):
        for identity, reference in zip(found.pictures, references, strict=False):
            pixels.setdefault(identity, reference)  # equal pictures are kept once
    digests = [found.digests for found in summaries]
    phases = [found.phases for found in summaries if found.phases is not None]
    return TokenisedSet([block for block, *_ in parts], starts, counts, digests, pixels, phases), report


def _tokenise_chunks(
    data: DataSet,
    folders: Mapping[str, str],
    report: DataReport,
    progress: Progress | None,
    pictures: PictureFormat | None,
    files: PictureFiles,
) -> list[list[Any]]:
    """References to the block, the summary and the pictures of each chunk of one data set. See `tokenise_task`."""
    source = open_set(data)
    report.note(source.note)
    if source.columns:
        report.format = choose_format(data, source.columns)  # raises for a wrong column before any task starts
    nodes, cpus = _worker_nodes(folders)
    turns = cycle(nodes)
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    remote = ray.remote(tokenise_task)
    read = chunks(with_pictures(source, data, files) if pictures else source)
    begun = list(islice(read, 2))
    if len(begun) == 1 and (here := folders.get(ray.get_runtime_context().get_node_id())) is not None:
        # One task could do no more at once than this process, and would first have to start.
        return [[ray.put(part) for part in tokenise_here(begun[0], data, source.columns, here, pictures)]]
    parts: list[list[Any]] = []
    pending: dict[Any, int] = {}

    def settle(limit: int) -> None:
        while len(pending) > limit:
            done, _ = ray.wait(list(pending), num_returns=1)
            rows = pending.pop(done[0])
            if progress is not None and task is not None:
                progress.update(task, advance=rows)

    for chunk in chain(begun, read):
        # Soft: when the node dies, its task runs on another, which has its own folder or says that it has none.
        where = NodeAffinitySchedulingStrategy(next(turns), soft=True)
        results = 2 + sum(row.pictures for row in chunk if isinstance(row, Row))
        options = remote.options(num_cpus=1, num_returns=results, scheduling_strategy=where)
        parts.append(options.remote(chunk, data, source.columns, dict(folders), pictures, results))
        pending[parts[-1][1]] = len(chunk)
        settle(PENDING_PER_CPU * cpus)
    settle(0)
    return parts


def _worker_nodes(folders: Mapping[str, str]) -> tuple[list[str], int]:
    """The ids of the living nodes with a CPU and the tokenizer, and how many CPUs these nodes have."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    nodes = sorted(node for node in folders if cpus.get(node, 0) >= 1)
    if not nodes:
        raise UserError(
            "no node that holds the tokenizer has a CPU for Ray; start nodes with `ray start --num-cpus` above 0"
        )
    return nodes, sum(cpus[node] for node in nodes)


def _get(references: list[Any]) -> list[Any]:
    try:
        values: list[Any] = ray.get(references)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    return values
