"""The training loop. It reads like the algorithm, and knows neither Ray nor how ranks share the work."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoint.lineage import Lineage
from .checkpoint.state import UNKNOWN, Progress, load_checkpoint, save_checkpoint
from .config.schema import TrainConfig
from .config.sections.recipe import Interval
from .data.prefetch import StepPrefetcher
from .device.meter import DeviceMeter
from .device.out_of_memory import EVALUATION, TRAINING, check_memory_limit, told_out_of_memory
from .errors import refuse_non_finite
from .interfaces import EMPTY_PASS, BlockSource, PackedRows, Reporter, StepRows
from .model.gemma import TrainableModel
from .step.early_stopping import early_end
from .step.history import best_evaluation, last_evaluated_step, losses_at, mean_loss_since_last, told_early_end
from .step.outcome import UNCHANGED, TrainResult
from .step.record import EvalRecord, StepRecord
from .step.schedule import is_due, learning_rate_at
from .step.seeding import seed_step
from .step.shares import sentence_of, shares_of
from .step.throughput import StepClock, flop_counter, peak_memory_bytes, rated_flops_per_second, sum_of
from .strategies.base import Strategy, digest_of

log = logging.getLogger("gemfleet.train")


class Trainer:
    """One rank's run. It holds the state that the phases share; `run()` is the algorithm."""

    def __init__(
        self,
        config: TrainConfig,
        model: TrainableModel,
        strategy: Strategy,
        source: BlockSource,
        reporter: Reporter,
        rank: int,
        work_folder: Path,
        lineage: Lineage = UNKNOWN,
    ) -> None:
        self.config, self.lineage = config, lineage
        self.flops = flop_counter(model, config.recomputation)
        self.data_rank = rank // config.context_size  # ranks of a context group have the same rows
        self.rated_flops = rated_flops_per_second(model.device, model.criterion.head_weight.dtype)
        self.model = strategy.setup(model)
        self.strategy = strategy
        self.source = source
        self.reporter = reporter
        self.rank = rank
        self.work_folder = work_folder
        self.progress = Progress(total_steps=config.total_steps(source.steps_per_epoch))
        self.clock = StepClock()
        self.meter = DeviceMeter.of(self.model.device, rank, strategy.world_size)
        self.shares = shares_of(config, self.model.device, self.model.criterion, rank, strategy.world_size)
        self._saved_step = 0
        self._saving_seconds = 0.0
        self._evaluated_step: int | None = None

    def run(self) -> TrainResult:
        """Trains from the newest checkpoint, or from the start, to the last step or a request to stop. Collective."""
        self.resume()
        if self.progress.step == 0 and (origin := self.lineage.adapter) and origin.digest:
            self.remember({"began_with": origin.name})
        if self.progress.step == 0 or self.is_due(self.config.evaluation.every):  # a stop left its step's out
            self.evaluate()
        done = self.progress.step == self.progress.total_steps or self.early_end() is not None
        before = None if done else digest_of(self.strategy.gather_adapter())
        stopped = before is not None and self.train()
        if not stopped:
            self.evaluate()
            self.remember_early_end()
        self.save()
        changed = before is None or digest_of(self.strategy.gather_adapter()) != before
        if not changed:
            log.warning("%s", UNCHANGED)
        self.reporter.progress("finish")
        self.reporter.finish()
        return self.result(stopped, changed)

    def train(self) -> bool:
        """Runs optimizer steps until a rank is asked to stop (returns True), or to the last one (False). Collective.

        The last one is that of the configuration, or one whose evaluation ends training early.
        """
        span = self.progress.step, self.progress.total_steps
        with StepPrefetcher(self.source, self.data_rank, *span, self.shares.of_step) as steps:
            for index, rows in steps:
                self.clock.start()
                stop = self.train_step(index, rows, steps.last_wait_seconds)
                if stop:
                    return True
                if self.is_due(self.config.evaluation.every):
                    self.evaluate()
                    if self.early_end():
                        return False
                if self.save_is_due():
                    self.save()
        return False

    def train_step(self, index: int, step: StepRows, data_wait_seconds: float) -> bool:
        """Runs one optimizer step. Returns whether a rank was asked to stop, so that all stop after it. Collective.

        index: of the step, from 0; data_wait_seconds: how long the loop waited for the rows
        """
        self.reporter.progress("step")
        seed_step(self.config.seed, index, self.rank)
        losses, raw_tokens = [], 0
        self.shares.start()
        for micro_batch in self.passes(step.rows, self.config.batch.rows_per_pass):
            loss = self.model.loss_sum(micro_batch)
            # Each token has the same weight, whatever the micro-batch, the accumulation or the number of ranks.
            self.strategy.backward(loss / step.step_supervised_tokens)
            losses.append(loss.detach())  # reading its value here would wait for the device
            raw_tokens += self.model.computed_tokens(micro_batch)
            check_memory_limit(self.config.batch)
        self.shares.stop(len(step.rows.tokens))
        self.strategy.reduce_gradients()
        grad_norm = self.strategy.clip(self.config.optim.max_grad_norm)
        loss_sum, stop = sum_of(losses), float(self.reporter.should_stop())
        rows, pictures = step.rows, len(step.rows.pictures)
        flops = self.flops.count(rows.document_lengths.tolist(), rows.supervised_tokens, pictures)
        counted = [float(raw_tokens), *map(self.model.counted_once, (flops.model, flops.recomputed))]
        counted += [float(pictures), self.flops.tower(self.model.take_pictures_seen())]
        speeds = self.shares.places()
        sums = self.strategy.sum_over_ranks([loss_sum, stop, *counted, *speeds, *self.meter.places()])
        (loss_total, stop_votes), computed, speeds = sums[:2], sums[2:7], sums[7 : 7 + len(speeds)]
        loads = sums[7 + len(speeds) :]
        mean_loss = loss_total / step.step_supervised_tokens
        refuse_non_finite(index + 1, mean_loss, grad_norm)
        learning_rate = learning_rate_at(index, self.progress.total_steps, self.config.optim)
        self.strategy.step(learning_rate)
        self.advance(index, step)
        self.record_step(step, computed, mean_loss, grad_norm, learning_rate, data_wait_seconds, loads)
        self.take_shares(self.shares.observe(index, step, speeds))
        return stop_votes > 0

    def passes(self, rows: PackedRows, rows_per_pass: int) -> list[PackedRows]:
        """This rank's micro-batches, then the empty passes that the strategy asks for. Collective."""
        own = list(rows.micro_batches(rows_per_pass))
        wanted = self.strategy.passes(len(own))
        if self.shares.equal_passes and len(own) < wanted:  # then no pass of a slower rank is as long as the others'
            own = list(rows.micro_batches(max(1, math.ceil(rows.row_count / wanted))))
        return own + [EMPTY_PASS] * (wanted - len(own))

    def take_shares(self, change: dict[str, Any] | None) -> None:
        """Keeps a change of the ranks' shares in the history, and tells it."""
        if change:
            self.remember(change)
            if self.rank == 0:
                self.reporter.tell("shares", sentence_of(change), change)

    def advance(self, index: int, step: StepRows) -> None:
        self.progress.step = index + 1
        self.progress.epoch = (index + 1) / self.source.steps_per_epoch
        self.progress.tokens_seen += step.step_tokens

    def record_step(
        self,
        step: StepRows,
        computed: list[float],
        loss: float,
        grad_norm: float,
        learning_rate: float,
        data_wait_seconds: float,
        loads: list[float],
    ) -> None:
        """Adds the step to the history. Rank 0 also reports it. data_wait_seconds: how long it waited for its rows

        computed: sums over all ranks: tokens with padding, the model's FLOPs, recomputed FLOPs, pictures, the
            tower's FLOPs; loads: of all devices
        """
        step_seconds, checkpoint_wait_seconds = self.clock.stop() + data_wait_seconds, self._saving_seconds
        self._saving_seconds = 0.0
        entry = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        if self.log_is_due():
            entry["mean_loss"] = mean_loss_since_last(self.progress.log_history, loss)
            log.info("step %d, epoch %.2f: mean loss %.4f", self.progress.step, self.progress.epoch, entry["mean_loss"])
        self.remember(entry)
        if self.rank == 0:
            record = StepRecord(
                **self.position(),
                loss=loss,
                grad_norm=grad_norm,
                learning_rate=learning_rate,
                mean_loss=entry.get("mean_loss"),
                step_seconds=step_seconds,
                data_wait_seconds=data_wait_seconds,
                checkpoint_wait_seconds=checkpoint_wait_seconds,
                raw_tokens=int(computed[0]),
                tokens=step.step_tokens,
                supervised_tokens=step.step_supervised_tokens,
                world_size=self.strategy.world_size,
                peak_memory_bytes=peak_memory_bytes(),
                flops=computed[1],
                recomputed_flops=computed[2],
                pictures=int(computed[3]),
                tower_flops=computed[4],
                rated_flops_per_second=self.rated_flops,
                **self.meter.record(loads),
                seconds_left=self.clock.seconds_left(self.progress.total_steps - self.progress.step),
                examples=step.step_examples,
            )
            self.reporter.log_step(record.to_dict())

    def evaluate(self) -> None:
        """Scores the evaluation sets, unless there are none or they were scored at this step. Collective."""
        if not self.source.eval_sets or self._evaluated_step == self.progress.step:
            return
        self.reporter.progress("evaluate")
        started = time.perf_counter()
        loss, by_set = self.evaluation_losses()
        seconds = time.perf_counter() - started
        self._evaluated_step = self.progress.step
        several = by_set if len(by_set) > 1 else None
        named = {f"eval_{name}_loss": value for name, value in (several or {}).items()}
        self.remember({"eval_loss": loss, **named, "eval_runtime": seconds})
        if self.rank == 0:
            record = EvalRecord(**self.position(), eval_loss=loss, eval_runtime=seconds, eval_losses=several)
            self.reporter.log_step(record.to_dict())

    def early_end(self) -> str | None:
        """Why training ends now, before its last step; None if it goes on."""
        done = self.progress
        if done.step == done.total_steps or last_evaluated_step(done.log_history) != done.step:
            return None
        return early_end(done.log_history, self.config.early_stopping, done.total_steps)

    def remember_early_end(self) -> None:
        sentence = self.early_end()
        if sentence is not None and told_early_end(self.progress.log_history) is None:
            log.info("%s", sentence)
            self.remember({"stopped_early": sentence})

    def evaluation_losses(self) -> tuple[float, dict[str, float]]:
        """The mean cross-entropy per supervised token of all evaluation sets, and that of each. Collective."""
        parts = [part for name in self.source.eval_sets for part in self.evaluation_sums(name)]
        sums = self.strategy.sum_over_ranks(parts)
        losses, tokens = sums[::2], sums[1::2]
        by_set = {name: losses[index] / tokens[index] for index, name in enumerate(self.source.eval_sets)}
        return math.fsum(losses) / math.fsum(tokens), by_set

    @torch.no_grad()
    def evaluation_sums(self, name: str) -> tuple[float, float]:
        """The summed cross-entropy and the supervised tokens of this rank's share of an evaluation set. Collective."""
        self.model.peft_model.eval()
        rows, losses = self.source.eval_rows(self.data_rank, name), list[torch.Tensor]()
        rows_per_pass, field = self.eval_rows_per_pass()
        with told_out_of_memory(rows_per_pass, field):
            for part in self.passes(rows, rows_per_pass):
                losses.append(self.model.loss_sum(part))
                check_memory_limit(self.config.batch)
        self.model.peft_model.train()
        self.model.take_pictures_seen()  # those of no step
        return sum_of(losses), self.model.counted_once(rows.supervised_tokens)

    def eval_rows_per_pass(self) -> tuple[int, str]:
        """The rows in a pass of an evaluation, and the field that sets them."""
        own = self.config.evaluation.micro
        return (self.config.batch.rows_per_pass, TRAINING) if own is None else (own, EVALUATION)

    def save(self) -> None:
        """Copies the full state off the device, unless this step is saved. Collective.

        The reporter writes the copy during the next steps.
        """
        if self._saved_step == self.progress.step:
            return
        started = time.perf_counter()
        self.reporter.progress("save")
        adapter, optimizer = self.strategy.gather_adapter(), self.strategy.gather_optimizer()
        write = None
        if self.rank == 0:
            write = partial(
                save_checkpoint,
                model=self.model,
                adapter=adapter,
                optimizer=optimizer,
                progress=self.progress.snapshot(),
                config=self.config,
                lineage=self.lineage,
            )
        self._saved_step = self.progress.step
        self.reporter.save_checkpoint(
            self.progress.step, write, losses_at(self.progress.log_history, self.progress.step)
        )
        self._saving_seconds += time.perf_counter() - started

    def resume(self) -> None:
        """Restores the newest verified checkpoint, if there is one. Collective."""
        with tempfile.TemporaryDirectory(prefix="resume-", dir=self.work_folder) as destination:
            folder = self.reporter.latest_checkpoint(Path(destination))
            if folder is None:
                return
            total_steps = self.progress.total_steps
            self.progress = load_checkpoint(folder, self.model, self.strategy, self.config, self.lineage)
            self.progress.total_steps = total_steps
            self.shares.restore(self.progress.log_history)
            self._saved_step = self.progress.step
            self._evaluated_step = last_evaluated_step(self.progress.log_history)
            for entry in self.progress.log_history[-1:]:
                for change in entry.get("accepted_changes", ()):
                    log.warning("going on although %s", change)
            log.info("resumed from %s at step %d of %d", folder.name, self.progress.step, total_steps)

    def is_due(self, every: Interval) -> bool:
        """Whether an event with this interval is due after the step that has just finished."""
        return is_due(every, self.progress.step, self.source.steps_per_epoch)

    def save_is_due(self) -> bool:
        """Whether to save now: by the interval, or since this step's evaluation is the best so far.

        Not after the last step, which is saved together with its evaluation.
        """
        config, done = self.config.checkpoint, self.progress
        if done.step == done.total_steps or config.every == "never":
            return False
        if self.is_due(config.every) or not config.best or self._evaluated_step != done.step:
            return self.is_due(config.every)
        return (best_evaluation(done.log_history) or (None,))[0] == done.step

    def log_is_due(self) -> bool:
        """Whether the finished step logs the mean loss. The last step always does, unless the interval is `never`."""
        every = self.config.logging.every
        return self.is_due(every) or (every != "never" and self.progress.step == self.progress.total_steps)

    def remember(self, entry: dict[str, Any]) -> None:
        self.progress.log_history.append({"epoch": self.progress.epoch, "step": self.progress.step, **entry})

    def position(self) -> dict[str, Any]:
        """The position of the run, for a record."""
        done = {"step": self.progress.step, "total_steps": self.progress.total_steps, "epoch": self.progress.epoch}
        return {**done, "epochs": self.config.epochs}

    def result(self, stopped: bool, adapter_changed: bool = True) -> TrainResult:
        done = self.progress
        early = None if stopped else self.early_end()
        return TrainResult.of(done.log_history, done.step, done.total_steps, stopped, adapter_changed, early)
