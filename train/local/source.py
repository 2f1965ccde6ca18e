"""Prepares and packs the data of a run in this process, for `python -m train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.home import gemfleet_home
from ..config.sections.data import DataConfig, DataSet
from ..data.digest import example_digests, run_digest
from ..data.mixture import Mixture, divide
from ..data.packing import TokenBlock, pack_steps, step_indices, steps_per_epoch
from ..data.pictures.files import PictureFiles
from ..data.pictures.format import PictureFormat
from ..data.pictures.pixel_file import PixelFile, stacked
from ..data.pictures.rows import picture_files, with_pictures
from ..data.prepared.store import PreparedCache, Seen
from ..data.readers import BadRow, Row, RowSource, open_set
from ..data.report import DataReport
from ..data.shares import rows_of_rank
from ..data.tokenizing import Encoder, Tokenised, tokenize_rows
from ..errors import UserError
from ..interfaces import Ints, PackedRows, Pixels, Shares, StepRows

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK_ROWS = 1000
CHUNKS = 64  # a list is at most about this part of the rows read so far
CHUNK_CHARACTERS = 8_000_000
CHUNK_PICTURES = 32  # about 77 MB of pixels

MakeEncoder = Callable[[DataSet, tuple[str, ...]], Encoder]  # for a data set with these columns


class LocalBlockSource:
    """A `BlockSource` over token blocks in memory. It packs each step on demand."""

    def __init__(
        self,
        train: TokenBlock,
        evaluation: Mapping[str, TokenBlock],
        *,
        global_batch: int,
        max_length: int,
        seed: int,
        world_size: int,
        mixture: Mixture | None = None,
        pictures: Sequence[PixelFile] = (),
    ) -> None:
        """evaluation: the evaluation sets by their names; mixture: of the sets that `train` has; None: it is one
        pictures: files that have those of all examples
        """
        self._train, self._evaluation = train, evaluation
        self._global_batch, self._max_length = global_batch, max_length
        self._seed, self._world_size = seed, world_size
        self._pictures = {identity: file for file in pictures for identity in file.ids.tolist()}
        self._mixture = mixture or Mixture((len(train),))
        self._order: tuple[int, Ints] = (0, self._mixture.order(seed, 0))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._train), self._global_batch)

    @property
    def eval_sets(self) -> tuple[str, ...]:
        return tuple(self._evaluation)

    @property
    def pictures(self) -> Ints:
        return np.array(sorted(self._pictures), np.int64)

    def step(self, epoch: int, step_in_epoch: int, rank: int, shares: Shares | None = None) -> StepRows:
        """See `BlockSource.step`."""
        chosen = step_indices(self._epoch_order(epoch), step_in_epoch, self._global_batch)
        block = pack_steps([self._train.select(chosen)], self._world_size, self._max_length)
        return rows_of_rank(block, 0, rank, shares)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        """See `BlockSource.eval_rows`."""
        return pack_steps([self._evaluation[name]], self._world_size, self._max_length).step(0, rank).rows

    def pixels(self, ids: Ints) -> Pixels:
        """See `BlockSource.pixels`."""
        return stacked([self._pictures[identity].pixels(identity) for identity in ids.tolist()])

    def _epoch_order(self, epoch: int) -> Ints:
        known, order = self._order  # one tuple, so the prefetching thread sees no half of a change
        if known != epoch:
            order = self._mixture.order(self._seed, epoch)
            self._order = (epoch, order)
        return order


def prepare_local(
    data: DataConfig,
    global_batch: int,
    seed: int,
    tokenizer: Any,
    world_size: int,
    progress: Progress | None = None,
    embedding_rows: int | None = None,
    cache: PreparedCache | None = None,
    pictures: PictureFormat | None = None,
) -> tuple[LocalBlockSource, DataReport]:
    """Reads, tokenises and splits the data of a run. Raises UserError if a set has no example left.

    embedding_rows, pictures: see `Encoder`
    cache: where a set that was tokenised before is found, and a new one is kept
    """
    make = partial(Encoder, tokenizer, embedding_rows=embedding_rows, pictures=pictures)
    tokenise = partial(_prepared, cache, make=make, pictures=pictures, progress=progress)
    sets, eval_sets = data.train_sets(), data.eval_sets()
    blocks, reports, seen = zip(*map(tokenise, sets), strict=True)
    eval_blocks, eval_reports, eval_seen = zip(*map(tokenise, eval_sets), strict=True) if eval_sets else ((), (), ())
    examples = TokenBlock.concatenate(blocks)
    fraction = 0.0 if eval_sets else data.eval_fraction
    division = divide(sets, [block.counts for block in blocks], fraction, seed, reports)
    evaluation = {name: examples.select(held_out) for name, held_out in division.held_out.items()}
    report = DataReport.of_run(data.spoken(), reports, eval_reports)
    report.digest = run_digest(
        map(example_digests, blocks), division.mixture.describe(), map(example_digests, eval_blocks)
    )
    source = LocalBlockSource(
        examples.select(division.train),
        evaluation | {found.name: block for found, block in zip(eval_sets, eval_blocks, strict=True)},
        global_batch=global_batch,
        max_length=data.max_length,
        seed=seed,
        world_size=world_size,
        mixture=division.mixture,
        pictures=[file for file in (*seen, *eval_seen) if file is not None],
    )
    return source, report


def chunks(source: RowSource) -> Iterator[list[Row | BadRow]]:
    """The rows of a source, in lists of at least CHUNK_ROWS, unless they hold many characters or pictures.

    Lists grow with the rows read, so that few rows are shared among all who tokenise, and many become few blocks.
    """
    chunk: list[Row | BadRow] = []
    characters = pictures = 0
    for read, row in enumerate(source.rows, 1):
        chunk.append(row)
        characters += len(str(row.values)) if isinstance(row, Row) else 0
        pictures += row.pictures if isinstance(row, Row) else 0
        full = len(chunk) >= max(CHUNK_ROWS, read // CHUNKS) or characters >= CHUNK_CHARACTERS
        if full or pictures >= CHUNK_PICTURES:
            yield chunk
            chunk, characters, pictures = [], 0, 0
    if chunk:
        yield chunk


def _prepared(
    cache: PreparedCache | None,
    data: DataSet,
    make: MakeEncoder,
    pictures: PictureFormat | None,
    progress: Progress | None,
) -> tuple[TokenBlock, DataReport, PixelFile | None]:
    """One block of all usable examples of a set, from the cache if they are there; the set's report; its pictures."""
    key = None if cache is None else cache.key(data)
    with nullcontext() if cache is None else cache.alone(key):
        kept = None if cache is None else cache.find(key, data)
        if kept is not None:
            parts, report, pixels = list(kept.blocks()), kept.report, kept.pixels
        else:
            report, pixels, files = DataReport.of_set(data), None, picture_files(data)
            parts = []
            for _, done in tokenised_chunks(data, report, make, files if pictures else None, progress):
                parts.append(done.block)
                if done.pixels and pictures:
                    pixels = pixels or PixelFile.temporary(pictures.size)
                    _store(pixels, done.pixels)
        block = TokenBlock.concatenate(parts)
        report.count(block.counts)
        if cache is not None and kept is None:
            cache.save(key, [block], example_digests(block), report, Seen(pixels, files))
    report.check(data.section)
    return block, report, pixels


def _store(file: PixelFile, pictures: Mapping[int, Pixels]) -> None:
    """Adds pictures to a file. Raises UserError if the disk is full."""
    try:
        for identity, pixels in pictures.items():
            file.add(identity, pixels)
    except OSError as error:
        raise UserError(
            f"{gemfleet_home()} has no room left for pictures ({error.strerror}), {file.picture_bytes / 1e6:.1f} MB "
            "each; make room, or let GEMFLEET_HOME name a folder on a larger disk"
        ) from error


def tokenised_chunks(
    data: DataSet, report: DataReport, make: MakeEncoder, files: PictureFiles | None, progress: Progress | None
) -> Iterator[tuple[list[Row | BadRow], Tokenised]]:
    """The rows of a set, in their order, chunk by chunk with what became of them. `report` counts all but examples.

    files: from which pictures are read; None: the base does not see
    """
    source = open_set(data)
    report.note(source.note)
    encoder = make(data, source.columns) if source.columns else None
    report.format = encoder.format if encoder else ""
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    for chunk in chunks(with_pictures(source, data, files) if files else source):
        done = tokenize_rows(chunk, encoder)
        report.add(done, len(chunk))
        yield chunk, done
        if progress is not None and task is not None:
            progress.update(task, advance=len(chunk))
