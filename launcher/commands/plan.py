"""`gemfleet plan`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from gemfleet.train.planning.options import Checkpointing, Dtype, Quantization

from .options import Json

if TYPE_CHECKING:
    from gemfleet.launcher.plan.fleet import SizingReport
    from gemfleet.train.planning import Workload

NOT_FOR_SWEEP = {
    "model",
    "gpu",
    "gpus",
    "gpus_per_node",
    "network",
    "quantization",
    "checkpointing",
    "sharing",
    "pictures",
    "as_json",
}


def plan(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Take model, lengths and batch from this file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="270m, 1b, 4b, 12b, 27b, or a folder with a config.json.")
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="A GPU by its name; a wrong one lists them all.")] = "h200",
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", "-n", help="GPUs in all, 1 to 512. [default: cluster.workers of CONFIG, else 1]"),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1, help="GPUs in one machine.")] = 8,
    network: Annotated[
        float, typer.Option("--network-gbit", min=0.1, help="Network of one machine, in Gbit/s.")
    ] = 100.0,
    length: Annotated[int | None, typer.Option("--length", "-l", min=2, help="Tokens in a packed row.")] = None,
    micro: Annotated[int | None, typer.Option("--micro", min=1, help="Rows that one GPU holds in one pass.")] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global", min=1, help="Examples in one optimizer step, over all GPUs.")
    ] = None,
    example_tokens: Annotated[
        int | None, typer.Option("--example-tokens", min=1, help="Mean tokens of an example; default: a full row.")
    ] = None,
    supervised: Annotated[
        float, typer.Option("--supervised", min=0.0, max=1.0, help="Share of the tokens that the loss scores.")
    ] = 1.0,
    lora_r: Annotated[int | None, typer.Option("--lora-r", min=1, help="Rank of the adapters.")] = None,
    precision: Annotated[Dtype | None, typer.Option("--precision", help="Dtype of the computation.")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option("--quantization", "-q", help="Bits in which the frozen base is held.")
    ] = None,
    checkpointing: Annotated[
        Checkpointing | None,
        typer.Option("--activation-checkpointing", help="What backward computes anew; default: as little as fits."),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Print what fits of all sizes, GPUs and numbers of them, as Markdown; of CONFIG only lengths, "
            "batch and adapters count.",
        ),
    ] = False,
    sharing: Annotated[
        str | None,
        typer.Option(
            "--context-parallel", "-c", help="GPUs that share each pass, or auto. [default: as CONFIG says, else 1]"
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Rows hold pictures, whose features are kept, unless CONFIG says not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell how much memory a run needs on its GPUs, which strategy fits, and how fast it could be. Starts nothing.

    Every strategy has a line: the memory of one GPU in GiB by its use, and the tokens per second of one GPU. The best
    one is marked and explained. It is ddp if the frozen base fits on every GPU with a tenth to spare, because then only
    the adapters' gradients move between GPUs; else it is fsdp2, which divides the base.

    The columns: `weights` is the frozen base. `grads` and `AdamW` belong to the adapters and are small. `activations`
    grow with length times micro, so halve those first when nothing fits. `comm` holds gathered weights and buffers.
    `rest` is CUDA itself and the allocator's slack. On a narrow terminal `other` sums all but weights and activations.
    The ceiling is what the GPU's matrix units could do with no other work.

    Examples:

      gemfleet plan finetune.yaml --gpus 4 --gpu a100-40

      gemfleet plan --model 27b --gpus 8 --gpu h200 --length 4096 --micro 2

      gemfleet plan --model 27b --gpus 2 --gpu rtx4090 --quantization int4

      gemfleet plan --model 12b --gpus 8 --gpu h100 --length 131072 --context-parallel auto

      gemfleet plan --model 4b --gpus 64 --gpu h100 --network-gbit 400 --json | jq .chosen

      gemfleet plan --sweep --length 2048 > table.md
    """
    from dataclasses import replace

    from gemfleet.launcher.config.cluster import ANY_KIND, ranks_of
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.plan.fleet import size_up
    from gemfleet.launcher.plan.fleet_question import context_of, find_device, find_shape, work_of_config
    from gemfleet.train.errors import UserError
    from gemfleet.train.planning import Fleet, Workload

    if sweep:
        _refuse_for_sweep(context)
    work, rows_open = Workload(example_tokens=example_tokens, supervised=supervised), False
    work = replace(work, pictures="kept") if pictures else work
    if config is not None:
        loaded = load_config(config)
        train = loaded.train.with_shares_by_speed() if loaded.cluster.gpu_kind == ANY_KIND else loaded.train
        gpus = gpus or ranks_of(loaded.cluster.workers)
        work = work_of_config(train, example_tokens, supervised, pictures)
        model = model or train.model
        rows_open = micro is None and not isinstance(train.batch.micro, int)
        if train.activation_checkpointing != "auto":
            checkpointing = checkpointing or train.activation_checkpointing
        sharing = sharing or str(train.context_parallel)
    given: dict[str, Any] = {
        "length": length,
        "micro": micro,
        "global_batch": global_batch,
        "lora_rank": lora_r,
        "dtype": precision,
        "quantization": quantization,
    }
    work = replace(work, **{name: value for name, value in given.items() if value is not None})
    if sweep:
        _print_sweep(work)
        return
    if model is None:
        raise UserError("nothing to plan for; give a CONFIG, or --model with one of 270m, 1b, 4b, 12b, 27b")
    fleet = Fleet(gpus or 1, gpus_per_node, network)
    report = size_up(
        find_shape(model), work, find_device(gpu), fleet, checkpointing, rows_open, context_of(sharing or "1")
    )
    _print(report, as_json)


def _refuse_for_sweep(context: typer.Context) -> None:
    """Raises UserError if an option is given that `--sweep` would leave out of account."""
    from gemfleet.train.errors import UserError

    options = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    sources = {name: context.get_parameter_source(name) for name in options if name in NOT_FOR_SWEEP}
    given = [options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise UserError(
            f"--sweep prints all sizes, GPUs and numbers of GPUs as Markdown, each with the first way that fits, so it "
            f"takes no {' and no '.join(given)}; leave out one or the other"
        )


def _print(report: SizingReport, as_json: bool) -> None:
    import json

    from gemfleet.launcher.plan.fleet_table import table_rows

    from .tables import open_console, print_table, print_text

    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    print_text(f"{_heading(report)}\n{_work_sentence(report.work)}")
    print_table(*table_rows(report, open_console().width))
    print_text(f"{'chosen' if report.choice.fits else 'refused'}: {report.choice.reason}")
    if report.choice.fits:
        print_text(_speed_sentence(report))
    print_text("\n".join(report.notes))


def _print_sweep(work: Workload) -> None:
    from gemfleet.launcher.plan.sweep_table import sweep_table

    typer.echo(sweep_table(work), nl=False)


def _heading(report: SizingReport) -> str:
    from gemfleet.train.planning.counts import language_parameters, lora_parameters

    trained = lora_parameters(report.shape, report.work.lora_rank, report.work.lora_targets)
    return (
        f"Gemma 3 {report.shape.name}: {language_parameters(report.shape) / 1e6:,.0f} M parameters and "
        f"{trained / 1e6:.1f} M in adapters, on {report.fleet.ranks} x {report.device.name}"
    )


def _work_sentence(work: Workload) -> str:
    base = "" if work.quantization == "none" else f", base in {work.quantization}"
    rows = f"{work.micro} row{'s' if work.micro > 1 else ''} of {work.length} tokens in a pass"
    return f"{rows}, {work.global_batch} examples in a step, {work.dtype}{base}"


def _speed_sentence(report: SizingReport) -> str:
    speed = report.speed
    passes = "1 pass" if speed.passes == 1 else f"{speed.passes} passes"
    return (
        f"expected: {speed.expected:,.0f} tokens/s per GPU of a ceiling of {speed.ceiling:,.0f} (MFU {speed.mfu:.0%}); "
        f"a step takes {speed.step_seconds:.2f} s in {passes}, "
        f"{speed.communication_seconds / speed.step_seconds:.1%} of it waiting for communication"
    )
