"""Prepares and packs the data of a run in this process, for `python -m train`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..config.data_section import DataConfig, DataSet, listed
from ..data.digest import data_digest, example_digests
from ..data.packing import Ints, TokenBlock, epoch_order, pack_steps, split_eval, step_indices, steps_per_epoch
from ..data.readers import BadRow, Row, RowSource, open_set
from ..data.report import DataReport
from ..data.tokenizing import Encoder, tokenize_rows
from ..interfaces import PackedRows, StepRows

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK_ROWS = 1000


class LocalBlockSource:
    """A `BlockSource` over two token blocks in memory. It packs each step on demand."""

    def __init__(
        self,
        train: TokenBlock,
        evaluation: TokenBlock | None,
        *,
        global_batch: int,
        max_length: int,
        seed: int,
        world_size: int,
    ) -> None:
        self._train, self._evaluation = train, evaluation
        self._global_batch, self._max_length = global_batch, max_length
        self._seed, self._world_size = seed, world_size
        self._order: tuple[int, Ints] = (0, epoch_order(len(train), seed, 0))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._train), self._global_batch)

    @property
    def has_eval(self) -> bool:
        return self._evaluation is not None

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """See `BlockSource.step`."""
        chosen = step_indices(self._epoch_order(epoch), step_in_epoch, self._global_batch)
        return pack_steps([self._train.select(chosen)], self._world_size, self._max_length).step(0, rank)

    def eval_rows(self, rank: int) -> PackedRows:
        """See `BlockSource.eval_rows`."""
        evaluation = self._evaluation if self._evaluation is not None else TokenBlock.concatenate([])
        return pack_steps([evaluation], self._world_size, self._max_length).step(0, rank).rows

    def _epoch_order(self, epoch: int) -> Ints:
        known, order = self._order  # one tuple, so the prefetching thread sees no half of a change
        if known != epoch:
            order = epoch_order(len(self._train), self._seed, epoch)
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
) -> tuple[LocalBlockSource, DataReport]:
    """Reads, tokenises and splits the data of a run. Raises UserError if no example is left to train on.

    embedding_rows: see `Encoder`
    """
    report = DataReport(data.spoken())
    tokenise = partial(_tokenise, tokenizer=tokenizer, embedding_rows=embedding_rows, progress=progress)
    train = TokenBlock.concatenate([tokenise(found, report) for found in data.train_sets()])
    report.digest = data_digest([example_digests(train)])
    report.examples = len(train)
    report.check(data)
    evaluation: TokenBlock | None
    if eval_sets := data.eval_sets():
        eval_report = DataReport(listed([found.path for found in eval_sets]))
        evaluation = TokenBlock.concatenate([tokenise(found, eval_report) for found in eval_sets])
        eval_report.examples = len(evaluation)
        eval_report.check(data)
        report.note(eval_report.aside())
    else:
        mine, held_out = split_eval(len(train), data.eval_fraction, seed)
        evaluation, train = (train.select(held_out) if len(held_out) else None), train.select(mine)
    report.examples, report.eval_examples = len(train), 0 if evaluation is None else len(evaluation)
    report.tokens, report.supervised_tokens = len(train.tokens), train.supervised_tokens
    source = LocalBlockSource(
        train,
        evaluation,
        global_batch=global_batch,
        max_length=data.max_length,
        seed=seed,
        world_size=world_size,
    )
    return source, report


def chunks(source: RowSource, size: int = CHUNK_ROWS) -> Iterator[list[Row | BadRow]]:
    """The rows of a source, in lists of at most `size`."""
    while chunk := list(islice(source.rows, size)):
        yield chunk


def _tokenise(
    data: DataSet, report: DataReport, tokenizer: Any, embedding_rows: int | None, progress: Progress | None
) -> TokenBlock:
    """One block of all usable rows, in their order. `report` counts the others."""
    source = open_set(data)
    report.note(source.note)
    encoder = Encoder(tokenizer, data, source.columns, embedding_rows) if source.columns else None
    report.format = encoder.format if encoder else ""
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    blocks: list[TokenBlock] = []
    for chunk in chunks(source):
        done = tokenize_rows(chunk, encoder)
        blocks.append(done.block)
        report.rows += len(chunk)
        report.truncated += done.truncated
        report.unused |= done.unused
        report.add_left_out(done.left_out)
        if progress is not None and task is not None:
            progress.update(task, advance=len(chunk))
    return TokenBlock.concatenate(blocks)
