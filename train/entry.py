"""`python -m train CONFIG`: the same loop without Ray, in one process or under `torchrun`.

It serves to debug, and to measure a bare GPU machine. It reads the files that `gemfleet train` reads, and uses only
their `train` section.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.schema import TrainConfig
from .errors import EXIT_BAD_INPUT, NonFiniteLossError, UserError

if TYPE_CHECKING:
    from .step.outcome import TrainResult

EXAMPLES = """examples:
  python -m train examples/demo.yaml
  torchrun --nproc-per-node 2 -m train examples/demo.yaml --set train.max_steps=10
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 trained, 1 training failed, 2 a mistake of the user's, 130 ended by Ctrl-C."""
    options = _parser().parse_args(arguments)
    if options.out is None:
        os.umask(0o077)  # files in the home are for its user only
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from .config.train_file import load_train
    from .device.out_of_memory import OutOfMemoryError

    try:
        config, left = load_train(options.config, options.set)
        if left and os.environ.get("RANK", "0") == "0":
            print(f"{options.config}: only `train` counts here; {_listed(left)} left to `gemfleet train`")
        with process_group():
            train_here(config, options.out, options.resume, options.accept_changes)
    except (UserError, OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (NonFiniteLossError, OSError) as error:
        print(f"error: training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


def train_here(config: TrainConfig, out: Path | None, resume: bool, accept_changes: bool = False) -> None:
    """Prepares model and data in this process, trains, and prints where the adapter is. Collective under `torchrun`."""
    from .batch_finder.local import settle_micro
    from .data.pictures.format import PictureFormat
    from .data.prepared.store import prepared_cache
    from .device.abilities import prepare_process
    from .device.memory import resident_bytes
    from .local.devices import settle_here
    from .local.reporter import LocalReporter
    from .local.source import prepare_local
    from .model.base_check import check_base, load_tokenizer
    from .model.resolve import check_context, embedding_rows, resolve_model_folder
    from .model.vision.kept import feature_folder
    from .model.weight_files import beside_note
    from .step.early_stopping import refuse_unknown_metric
    from .worker import run_training

    ranks_on_node, local_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    prepare_process(ranks_on_node)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model_folder = resolve_model_folder(config.model)
    check_context(model_folder, config.data.max_length)
    config, settled = settle_here(config, model_folder, local_rank, ranks_on_node)
    tokenizer = load_tokenizer(model_folder)
    check_base(model_folder)
    adapter = starting_adapter(config, model_folder)
    before = resident_bytes()
    with _bars(rank) as progress:
        source, report = prepare_local(
            config.data,
            config.batch.global_,
            config.seed,
            tokenizer,
            config.data_ranks(world_size),
            progress,
            embedding_rows(model_folder),
            prepared_cache(config.data.cache_bytes, model_folder),
            PictureFormat.of(model_folder),
        )
    refuse_unknown_metric(config, source.eval_sets)
    config.refuse_shared_pictures(len(source.pictures))
    held = max(0, resident_bytes() - before)
    config = settle_micro(config, settled, model_folder, source, rank, world_size, held)
    reporter = LocalReporter(_shared_folder(out), rank, resume)
    if rank == 0:
        print(*filter(None, [beside_note(model_folder), report.summary()]), sep="\n")
    with reporter, tempfile.TemporaryDirectory(dir=reporter.folder, prefix=".work-") as work:
        result = run_training(
            config,
            model_folder,
            source,
            reporter,
            rank,
            local_rank,
            Path(work),
            report.digest,
            accept_changes,
            adapter,
            feature_folder(config.vision.head_cache_bytes) if config.vision.cache == "head" else None,
        )
    if rank == 0:
        print(*filter(None, [result.stopped_early, _ended(result, reporter.checkpoint_folder)]), sep="\n")


def _ended(result: TrainResult, folder_of: Callable[[int], Path]) -> str:
    """How training ended, and where its adapter is. folder_of: of the checkpoint of a step, which may not exist"""
    losses = f"evaluation loss {result.eval_loss_before:.4f} -> {result.eval_loss:.4f}; " if result.eval_loss else ""
    where = f"adapter: {folder_of(result.steps)}" if result.steps else "nothing was trained"
    best = result.best_step
    if best and best < result.steps and folder_of(best).is_dir():
        where += f"; the best by evaluation loss: {folder_of(best)}"
    return f"{result.steps} steps; {losses}{where}"


def starting_adapter(config: TrainConfig, model_folder: Path) -> Path | None:
    """The checked folder of `train.adapter`, a folder or a hub id; None where training begins with a new adapter."""
    from .checkpoint.lineage import base_digest
    from .model.base_check import check_base
    from .model.gemma import lora_targets
    from .model.starting_adapter import check_its_base, check_options, check_tensors, resolve_adapter_folder

    if config.adapter is None:
        return None
    folder, base = resolve_adapter_folder(config.adapter), check_base(model_folder)
    check_options(folder, config.lora)
    check_tensors(folder, base, lora_targets(base, config.lora.target_modules))
    if note := check_its_base(folder, config.model, base_digest(model_folder)):
        print(note, file=sys.stderr)
    return folder


@contextmanager
def process_group() -> Iterator[None]:
    """Makes torch's process group as `torchrun` describes it, or a group of one, since sharding needs a group."""
    import torch
    import torch.distributed as dist

    from .device.abilities import current_device, refuse_unusable_gpus

    refuse_unusable_gpus()
    check_ranks_have_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it under ZeRO-3, also in a single process
    # Before the first collective, because NCCL makes a rank's communicator on the GPU that is current then.
    current_device(int(os.environ["LOCAL_RANK"]))
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(minutes=10),
        **(alone if "WORLD_SIZE" not in os.environ else {}),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_ranks_have_gpus(ranks: int, gpus: int) -> None:
    """Raises UserError if this machine has GPUs, but fewer than ranks: two on one GPU would run out of memory."""
    if 0 < gpus < ranks:
        raise UserError(
            f"torchrun --nproc-per-node is {ranks}, but this machine has {_count(gpus, 'GPU')}; start at most {gpus}, "
            "or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(keys: Sequence[str]) -> str:
    *first, last = (f"`{key}`" for key in keys)
    return f"{', '.join(first)} and {last} are" if first else f"{last} is"


def _shared_folder(out: Path | None) -> Path:
    """The run's folder, the same for all ranks. Collective under `torchrun`."""
    import torch.distributed as dist

    from .config.home import gemfleet_home

    folder = [str(out or gemfleet_home() / "runs" / time.strftime("local-%Y%m%d-%H%M%S"))]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    return Path(folder[0])


@contextmanager
def _bars(rank: int) -> Iterator[Any]:
    """Progress bars on rank 0; None on the others."""
    if rank != 0:
        yield None
        return
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        yield progress


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Fine-tune Gemma 3 in this process (or under torchrun), without Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="the file of a run, YAML or JSON; only its `train` section counts")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field, as in train.lora.r=8"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: a new one below $GEMFLEET_HOME/runs)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although data, base or alpha differ from what the checkpoint was made from",
    )
    return parser
