"""The command line: one function a verb. Nothing heavy is imported before the verb that needs it runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

try:
    import typer
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from typer.core import TyperGroup
except ModuleNotFoundError as error:
    print(f'rheostat: the command line needs {error.name}: pip install "rheostat[cli]"', file=sys.stderr)
    raise SystemExit(2) from None

from rheostat.spec import ArtifactError, SubnetInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from rheostat.program import Program
    from rheostat_recipes.data import Images
    from rheostat_recipes.figures import Figure
    from rheostat_recipes.tables import Cell
    from rheostat_recipes.tables import Table as PaperTable

# Import name of an optional library -> the extra that brings it.
EXTRAS = {
    "datasets": "data",
    "matplotlib": "plot",
    "onnx": "export",
    "safetensors": "train",
    "sklearn": "demo",
    "torch": "train",
}
# Where runs go, RECIPE-SEED in it, and what they share.
RUNS = Path("rheostat-runs")
INTERRUPTED = 130
# Typer brings its own copy of click, or uses the installed one, depending on its version.
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class OneLineErrors(TyperGroup):
    """The verbs, with a user's mistake reported in one line and exit status 2, and never with a traceback."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line and exit."""
        try:
            status = super().main(*args, **(extra | {"standalone_mode": False}))
        except USAGE_ERROR as mistake:
            _fail(f"{mistake.format_message().rstrip('.')}; see rheostat --help")
        except ModuleNotFoundError as missing:
            library = (missing.name or "").partition(".")[0]
            if library not in EXTRAS:
                raise
            _fail(f'this needs {library}: pip install "rheostat[{EXTRAS[library]}]"')
        except (ValueError, ArtifactError, ImportError) as mistake:
            _fail(str(mistake))
        except MemoryError as failure:
            _fail(f"not enough memory{f': {failure}' if str(failure) else ''}")
        except OSError as failure:
            want = "; want a folder or a new name" if isinstance(failure, FileExistsError) else ""
            _fail(f"{failure.filename}: {failure.strerror}{want}" if failure.filename else str(failure))
        except (typer.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        if status == INTERRUPTED:  # some versions of Typer return it
            print("rheostat: interrupted", file=sys.stderr)
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One network, many operating points, one dial.",
)

ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A .safetensors file made by rheostat.save.")
]
DataDir = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of packed data sets.")]
MaxEpochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        min=1,
        help="No training longer than this, no sampling than three times this; the result says so.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads of the engine; default all cores.")
]


def main() -> None:
    """Run the command line with the arguments of the process."""
    app()


@app.callback(invoke_without_command=True)
def front(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """One network, many operating points, one dial."""
    if version:
        import rheostat

        print(f"rheostat {rheostat.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the artifact and the report go.")] = Path(
        "rheostat-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train four nested subnets on real digits, then turn the dial in a process without PyTorch."""
    from rheostat.artifact import read_program
    from rheostat.plot import Turn, report
    from rheostat_recipes.run import Run
    from rheostat_recipes.uniform import digits

    console = _console(stderr=as_json)
    run = Run(out=out, seed=seed)
    checkpoint = run.checkpoint()
    checkpoint.unlink(missing_ok=True)
    console.rule("1  Train four widths on one set of weights", align="left")
    with _stdout_for_json_only(as_json):
        artifact = digits(run).artifact
    assert artifact is not None, "uniform subnets nest"
    checkpoint.unlink(missing_ok=True)

    console.rule("2  Measure them in the engine", align="left")
    _measure_into(artifact)
    program = read_program(artifact)
    console.print(_subnet_table(program.subnets))
    console.print(f"All of them are in {artifact} ({artifact.stat().st_size:,} bytes).\n")

    console.rule("3  Turn the dial in a process without PyTorch", align="left")
    stream = out / "dial.json"
    command = [sys.executable, "-m", "rheostat", "dial", str(artifact), "--out", str(stream)]
    # Whatever the child prints belongs to the person who watches, not to a program that reads the JSON.
    child = subprocess.run(command, check=False, stdout=sys.stderr if as_json else None)
    if child.returncode != 0:  # it has said why
        raise typer.Exit(child.returncode)
    turns = [Turn(**turn) for turn in json.loads(stream.read_text(encoding="utf-8"))["turns"]]
    page = out / "report.html"
    report(page, "One network, four operating points", program, turns)
    console.print(f"\nReport: {page}")
    if as_json:
        _print_json([asdict(info) for info in program.subnets])


@app.command(hidden=True)
def dial(
    artifact: ArtifactPath,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write every turn as JSON.")] = None,
    data: DataDir = None,
    num: Annotated[int, typer.Option(min=16, help="Inputs in the stream.")] = 960,
) -> None:
    """Run a stream of inputs under a changing latency budget and show which subnet each got."""
    import math
    import time

    from rheostat.artifact import read_program
    from rheostat.measure import latency
    from rheostat.run.engine import Engine
    from rheostat.run.policy import choose

    images = _images(artifact, read_program(artifact), data)
    x, labels = images.normalized(images.test_images[:num]), images.test_labels[:num]
    console = _console()
    turns = []
    with Engine(artifact, threads=1) as engine:
        expected_ms = [p95 for _, p95 in latency(engine, x[:1], repeats=300)]
        low, high = 0.95 * min(expected_ms), 1.3 * max(expected_ms)
        for step in range(num):
            # Two slow swings of the budget, from more than enough to less than the smallest subnet needs.
            budget_ms = low + (high - low) * (0.5 + 0.5 * math.cos(4 * math.pi * step / num))
            image = x[step % len(x)][None]
            index = choose(expected_ms, budget_ms)
            start = time.perf_counter_ns()
            engine.select(index)
            answer = engine(image)
            elapsed_ms = (time.perf_counter_ns() - start) / 1e6
            correct = bool(answer[0].argmax() == labels[step % len(x)])
            turns.append(
                {"budget_ms": budget_ms, "subnet": index, "latency_ms": elapsed_ms, "correct": correct}
            )
        names = list(engine.subnets)
    console.print(_dial_table(turns, names))
    within = sum(turn["latency_ms"] <= turn["budget_ms"] for turn in turns)
    console.print(
        f"{len(turns)} inputs: {sum(turn['correct'] for turn in turns) / len(turns):.1%} answered correctly, "
        f"{within / len(turns):.1%} within budget, the switch included. "
        f"PyTorch in this process: {'yes' if 'torch' in sys.modules else 'no'}."
    )
    if out is not None:
        out.write_text(
            json.dumps({"subnets": names, "expected_ms": expected_ms, "turns": turns}), encoding="utf-8"
        )


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Its name; left out: list the recipes.")
    ] = None,
    data: DataDir = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: rheostat-runs/RECIPE-SEED; short runs apart.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A minute on enlarged digits instead of the real run.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and augmentation.")] = 0,
    epochs: MaxEpochs = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: trains, and writes artifact, result and checkpoint; under torchrun on all its processes."""
    from rheostat_recipes.queue import RECIPES
    from rheostat_recipes.run import Run, is_first, keep_freed_memory, processes, runs_dir

    recipes = {function.__name__: function for function in RECIPES}
    if recipe is None:
        does = {name: (function.__doc__ or "").partition("\n")[0] for name, function in recipes.items()}
        if as_json:
            _print_json(does)
            return
        table = Table("recipe", "what it does", box=None, header_style="bold")
        for row in does.items():
            table.add_row(*row)
        _console().print(table)
        return
    if recipe not in recipes:
        raise ValueError(f"train: got recipe {recipe!r}; want one of: {', '.join(recipes)}")
    runs = runs_dir(RUNS, smoke, epochs)
    run = Run(out or runs / f"{recipe}-{seed}", data, smoke, resume, seed, None if out else runs, epochs)
    if run.checkpoint().exists() and not resume:
        raise ValueError(f"{run.checkpoint()}: exists; pass --resume to go on from it, or another --out")
    keep_freed_memory()
    with _stdout_for_json_only(as_json), processes():
        result = recipes[recipe](run)
        if not is_first():
            return
    keys = ("name", "parameters", "macs", "size_bytes", "accuracy")
    subnets = json.loads(result.record.read_text("utf-8"))["subnets"]
    infos = [SubnetInfo(*(subnet[key] for key in keys)) for subnet in subnets]
    if as_json:
        _print_json([asdict(info) for info in infos])
    else:
        written = [str(path) for path in (result.artifact, result.record) if path is not None]
        _console().print(_subnet_table(infos), *written, sep="\n")


@app.command("eval")
def evaluate(
    artifact: ArtifactPath, data: DataDir = None, threads: Threads = None, as_json: AsJson = False
) -> None:
    """Measure the accuracy of every subnet through the engine, on the data it was trained for."""
    from rheostat.artifact import read_program
    from rheostat.measure import accuracy
    from rheostat.run.engine import Engine

    program = read_program(artifact)
    images = _images(artifact, program, data)
    num = len(images.test_labels)
    with Engine(artifact, threads=threads) as engine, _console(stderr=True).status(f"{num:,} images"):
        found = accuracy(engine, images.test_batches())
    rows = [
        {"subnet": info.name, "accuracy": share, "recorded": info.accuracy, "images": num}
        for info, share in zip(program.subnets, found, strict=True)
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("subnet", "accuracy", "in the artifact")
    for row in rows:
        recorded = "–" if row["recorded"] is None else f"{row['recorded']:.2%}"
        table.add_row(row["subnet"], f"{row['accuracy']:.2%}", recorded)
    _console(table).print(f"{program.provenance['data']}, {num:,} test images", table, sep="\n")


@app.command()
def quantize(
    artifact: ArtifactPath,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The artifact of integers.")],
    data: DataDir = None,
    bits: Annotated[int, typer.Option(help="8 or 16, of weights and activations.")] = 8,
    num: Annotated[int, typer.Option(min=1, help="Training images to calibrate on.")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Round an artifact to integers, calibrated on its training data, and measure what each subnet lost."""
    import numpy as np
    import torch

    from rheostat.artifact import read_program
    from rheostat.measure import accuracy
    from rheostat.run.engine import Engine
    from rheostat.train.quant import quantize as quantized

    program = read_program(artifact)
    images = _images(artifact, program, data)
    chosen = np.random.default_rng(0).permutation(len(images.train_images))[:num]
    x = torch.from_numpy(images.normalized(images.train_images[chosen]))
    result = quantized(artifact, x.split(64), bits)
    result.save(out)
    with Engine(out) as engine:
        found = accuracy(engine, images.test_batches())
    infos = tuple(
        replace(info, accuracy=share) for info, share in zip(result.program.subnets, found, strict=True)
    )
    replace(result, program=replace(result.program, subnets=infos)).save(out)
    if as_json:
        _print_json([asdict(info) for info in infos])
        return
    table = _table("subnet", "accuracy", "before", "bytes", "before")
    for before, after in zip(program.subnets, infos, strict=True):
        recorded = "–" if before.accuracy is None else f"{before.accuracy:.2%}"
        table.add_row(
            after.name, f"{after.accuracy:.2%}", recorded, f"{after.size_bytes:,}", f"{before.size_bytes:,}"
        )
    _console(table).print(f"{out}: {bits} bits, {len(images.test_labels):,} test images", table, sep="\n")


@app.command()
def inspect(artifact: ArtifactPath, as_json: AsJson = False) -> None:
    """Show what an artifact holds: subnets, channel groups, what is pinned and why, channels and levels per layer."""
    from rheostat.artifact import read_program
    from rheostat.plot import layers
    from rheostat.sizes import size_report

    program = read_program(artifact)
    names = [info.name for info in program.subnets]
    rows = layers(program)
    if as_json:
        _print_json(
            {
                "model": program.model,
                "producer": program.producer,
                "input": list(program.input.shape),
                "provenance": dict(program.provenance),
                "unsupported": program.unsupported,
                "subnets": [asdict(info) for info in program.subnets],
                "groups": [asdict(group) for group in program.groups],
                "layers": [{"layer": name, "channels": list(kept)} for name, kept in rows],
                "levels": {name: asdict(code) for name, code in program.levels.items()},
            }
        )
        return
    console = _console()
    console.print(f"{program.model}, input {list(program.input.shape)}, made by {program.producer}")
    for key, value in program.provenance.items():
        console.print(f"  {key}: {value}")
    if program.ops is None:
        console.print(f"The engine cannot run it: {program.unsupported}")
    table = _subnet_table(program.subnets)
    _console(table).print(table)
    table = _table("group", *names, "of", "pinned")
    for group in program.groups:
        table.add_row(group.name, *map(str, group.widths), str(group.size), group.pinned or "")
    _console(table).print("Channel groups, units kept by each subnet", table, sep="\n")
    if program.ops is not None:
        table = _table("layer", *names)
        for name, kept in rows:
            table.add_row(name, *map(str, kept))
        _console(table).print("Channels per layer", table, sep="\n")
    if program.levels:
        print(f"Sparsity of each subnet, and how the levels are stored\n{size_report(artifact)}")


@app.command()
def bench(
    artifact: ArtifactPath,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one inference.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed inferences of each subnet.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Measure the latency of every subnet in the engine, the subnets taking turns."""
    from rheostat.artifact import read_program

    program = read_program(artifact)
    with _console(stderr=True).status("measuring"):
        measured = _latencies(artifact, threads, batch, repeats)
    rows = [
        {"subnet": info.name, "p50_ms": p50, "p95_ms": p95, "batch": batch, "threads": threads}
        for info, (p50, p95) in zip(program.subnets, measured, strict=True)
    ]
    if as_json:
        _print_json(rows)
        return
    cores = "all cores" if threads is None else f"{threads} thread{'s' * (threads > 1)}"
    table = _table("subnet", "MACs", "p50", "p95")
    for info, (p50, p95) in zip(program.subnets, measured, strict=True):
        table.add_row(info.name, f"{info.macs:,}", _time(p50), _time(p95))
    _console(table).print(f"batch {batch}, {cores}, {repeats} inferences of each subnet", table, sep="\n")


@app.command()
def export(
    artifact: ArtifactPath,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="onnx: one file a subnet; c: C99 for microcontrollers.")
    ] = "onnx",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path(),
    flash_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="c: refuse constants that take more.")
    ] = None,
    ram_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="c: refuse activations that take more.")
    ] = None,
) -> None:
    """Write an artifact in another format."""
    if to == "c":
        from rheostat.run.export_c import export_c

        source = export_c(artifact, out, flash_bytes=flash_bytes, ram_bytes=ram_bytes)
        table = _table("", "bytes")
        table.add_row("constants, in flash", f"{sum(source.constant_bytes):,}")
        table.add_row("activations, in RAM", f"{source.arena_bytes + source.column_bytes:,}")
        table.add_row("written by a switch", f"at most {source.record_bytes}")
        _console(table).print(str(source.folder / "net.c"), table, sep="\n")
        return
    if to != "onnx":
        raise ValueError(f"--to: got {to!r}; want onnx or c")
    if flash_bytes is not None or ram_bytes is not None:
        raise ValueError("--flash-bytes, --ram-bytes: are for --to c")
    from rheostat.train.export import export_onnx

    for path in export_onnx(artifact, out):
        print(path)


Paper = Annotated[str, typer.Argument(metavar="PAPER", help="dynamic or pruning.")]
Results = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Your own runs instead of the kept results.")
]
RunMissing = Annotated[
    bool, typer.Option("--run", help="First run what is missing, into rheostat-runs or --results.")
]
Seeds = Annotated[str, typer.Option(metavar="N,N", help="Seeds that are missing where they have no result.")]


@app.command("table")
def paper_table(
    paper: Paper,
    number: Annotated[int, typer.Argument(metavar="N", help="Number of the table in the paper.")],
    results: Results = None,
    run: RunMissing = False,
    data: DataDir = None,
    seeds: Seeds = "0",
    epochs: MaxEpochs = None,
    as_json: AsJson = False,
) -> None:
    """Show a table of a paper beside our own numbers; with --run, make the numbers that are missing."""
    from rheostat_recipes.tables import load_table

    folders, wanted = _folders(results, run), _numbers(seeds)
    needs = load_table(paper, number).needs
    failures = _run_missing(needs, folders, data, wanted, epochs, as_json) if run else []
    shown = load_table(paper, number, folders)
    if as_json:
        _print_json([asdict(cell) for cell in shown.cells])
        _exit_if(failures)
        return
    _print_table(shown)
    _print_missing(f"table {paper} {number}", shown.needs, folders, wanted, epochs)
    _exit_if(failures)


def _print_table(shown: PaperTable) -> None:
    """Print a paper's table, each cell as "paper / ours" with letters for the notes below."""
    notes = dict.fromkeys(note for cell in shown.cells for note in cell.notes)
    marks = {note: chr(ord("a") + i) for i, note in enumerate(notes)}

    def text(cell: Cell) -> str:
        numbers = f"{_number(cell.paper)} / {_number(cell.ours)}"
        around = f"±{_number(round(cell.spread / 2, 2))}" if cell.spread else ""
        return " ".join(filter(None, (numbers, around, "".join(marks[note] for note in cell.notes))))

    units = {cell.column: cell.unit for cell in shown.cells}
    cells = {(cell.row, cell.column): text(cell) for cell in shown.cells}
    table = Table(box=SIMPLE_HEAD, padding=0, header_style="bold")
    rows = dict.fromkeys(cell.row for cell in shown.cells)
    table.add_column("", no_wrap=True, min_width=max(map(len, rows)))
    one_unit = len(set(units.values())) == 1
    for column, unit in units.items():
        table.add_column(column if one_unit else f"{column}, {unit}", justify="right")
    for row in rows:
        table.add_row(row, *(cells.get((row, column), "") for column in units))
    console = _console(table)
    what = f"paper / ours, {next(iter(units.values()))}" if one_unit else "paper / ours"
    console.print(f"{shown.title} ({what})", table, sep="\n")
    for note, mark in marks.items():
        console.print(f"{mark}: {note}", style="dim")
    console.print("", shown.source, shown.note, sep="\n")


@app.command("figure")
def paper_figure(
    paper: Paper,
    number: Annotated[int, typer.Argument(metavar="N", help="Number of the figure in the paper.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .svg, .png, .pdf or .html to write.")],
    results: Results = None,
    run: RunMissing = False,
    data: DataDir = None,
    seeds: Seeds = "0",
    epochs: MaxEpochs = None,
    as_json: AsJson = False,
) -> None:
    """Draw a figure of a paper from our own runs; with --run, train what is missing first."""
    from rheostat import plot
    from rheostat_recipes import figures

    plot.check_path(out)  # before hours of training
    shown, wanted = figures.load_figure(paper, number), _numbers(seeds)
    folders = _folders(results, run)
    failures = _run_missing(shown.needs, folders, data, wanted, epochs, as_json) if run else []
    numbers, drawn = _channels(shown, folders) if shown.kind == "channels" else _curves(shown, folders)
    if drawn is not None:
        plot.save(out, shown.title, f"Our runs, after Figure {number} of {figures.SOURCE}", drawn)
    if as_json:
        _print_json(numbers)
    else:
        _console().print("nothing to draw yet" if drawn is None else f"{out}: {', '.join(numbers)}")
        _print_missing(f"figure {paper} {number} --out {out}", shown.needs, folders, wanted, epochs)
    _exit_if(failures)


def _channels(figure: Figure, folders: Sequence[Path]) -> tuple[dict[str, Any], Picture | None]:
    """By panel, the channels of each layer; and their picture where there is any."""
    from rheostat.artifact import read_program
    from rheostat.plot import channels_of, layers
    from rheostat_recipes.figures import artifact, length

    files = {
        series.panel + length(series.recipe, folders): artifact(series.recipe, folders)
        for series in figure.series
    }
    programs = {panel: read_program(file) for panel, file in files.items() if file is not None}
    numbers = {panel: dict(layers(program)) for panel, program in programs.items()}
    return numbers, channels_of(programs) if programs else None


def _curves(figure: Figure, folders: Sequence[Path]) -> tuple[dict[str, Any], Picture | None]:
    """By panel and network, the (cost, accuracy) of each subnet; latencies are measured now, on this machine."""
    from rheostat.artifact import read_program
    from rheostat.plot import Curve, curves
    from rheostat_recipes.figures import artifact, gpu_latencies_ms, length, sizes_and_accuracies

    panels: dict[str, list[Curve]] = {}
    for series in figure.series:
        name = series.name + length(series.recipe, folders)
        if figure.kind == "macs":
            if points := sizes_and_accuracies(series.recipe, folders):
                macs, shares = zip(*points, strict=True)
                curve = Curve(name, tuple(count / 1e6 for count in macs), shares)
                panels.setdefault(series.panel, []).append(curve)
        elif (file := artifact(series.recipe, folders)) is not None:
            shares = tuple(info.accuracy or 0.0 for info in read_program(file).subnets)
            cpu_ms = [p50 for p50, _ in _latencies(file, None, 1, 200)]
            gpu_ms = gpu_latencies_ms(file, series.recipe)
            for where, times_ms in (("CPU, 1 image", cpu_ms), ("GPU, 128 images", gpu_ms)):
                if times_ms:
                    curve = Curve(name, tuple(times_ms), shares)
                    panels.setdefault(f"{series.panel}, {where}", []).append(curve)
    numbers = {panel: [asdict(curve) for curve in found] for panel, found in panels.items()}
    label = {"latency": "latency, ms (median)", "macs": "million multiply-accumulates"}[figure.kind]
    return numbers, curves(panels, label) if panels else None


def _folders(results: Path | None, run: bool) -> list[Path]:
    """Where results are looked for; new ones are written into the last."""
    from rheostat_recipes.tables import KEPT

    return [results] if results else [KEPT, RUNS] if run else [KEPT]


def _run_missing(
    needs: Mapping[str, Collection[tuple[str, str]]],
    folders: Sequence[Path],
    data: Path | None,
    seeds: Sequence[int],
    epochs: int | None,
    as_json: bool,
) -> list[str]:
    """Run what is missing, one after the other; a line for each run that failed."""
    from rheostat_recipes.queue import run_all
    from rheostat_recipes.tables import missing

    folders[-1].mkdir(parents=True, exist_ok=True)
    console = _console(stderr=as_json)
    with _stdout_for_json_only(as_json):
        todo = missing(needs, folders, seeds, epochs)
        return run_all(todo, folders[-1], data, partial(console.rule, align="left"), max_epochs=epochs)


def _print_missing(
    verb: str,
    needs: Mapping[str, Collection[tuple[str, str]]],
    folders: Sequence[Path],
    seeds: Sequence[int],
    epochs: int | None,
) -> None:
    """Say which runs have no result yet, and the command that makes them."""
    from rheostat_recipes.tables import KEPT, missing

    console, todo = _console(), missing(needs, folders, seeds, epochs)
    if not todo:
        return
    by_recipe: dict[str, list[str]] = {}
    for recipe, seed in todo:
        by_recipe.setdefault(recipe, []).append(str(seed))
    console.print("\nNot run yet:")
    for recipe, missed in by_recipe.items():
        console.print(f"  {recipe}, seed {', '.join(missed)}")
    flags = f" --results {folders[0]}" if folders[0] != KEPT else ""
    flags += f" --seeds {','.join(map(str, seeds))}" if list(seeds) != [0] else ""
    flags += "" if epochs is None else f" --epochs {epochs}"
    console.print(f"All of them, each from where it stopped: rheostat {verb} --run --data DIR{flags}")


def _numbers(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"--seeds: got {text!r}; want numbers such as 0,1,2")
    return [int(part) for part in text.split(",")]


def _exit_if(failures: Sequence[str]) -> None:
    """Repeat at the end what failed, and exit with status 1."""
    for failure in failures:
        print(f"rheostat: failed: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def _images(artifact: Path, program: Program, data_dir: Path | None) -> Images:
    """The images that belong to an artifact, with the mean and deviation of its training."""
    from rheostat_recipes.data import NAMES, load

    name = program.provenance.get("data")
    if not isinstance(name, str):
        raise ValueError(f"{artifact}: its provenance names no data; want data = one of {', '.join(NAMES)}")
    shape = program.input.shape
    images: Images = load(name, data_dir, shape if name == "digits" else ())
    for key in ("mean", "std"):
        numbers = tuple(map(float, str(program.provenance.get(key, "")).split()))
        images = replace(images, **{key: numbers}) if numbers else images
    if images.test_images.shape[1:] != shape or len(images.mean) != shape[0]:
        got = list(images.test_images.shape[1:])
        raise ValueError(
            f"{artifact}: takes {list(shape)}; {name} has {got}; want an artifact trained on {name}"
        )
    return images


def _measure_into(artifact: Path) -> None:
    """Measure the latency of an artifact's subnets, one input on one thread, and write it into the artifact."""
    from rheostat.artifact import read, write

    program, tensors = read(artifact)
    measured = _latencies(artifact, 1, 1, 1000)
    infos = tuple(
        replace(info, latency_ms_p50=p50, latency_ms_p95=p95)
        for info, (p50, p95) in zip(program.subnets, measured, strict=True)
    )
    write(artifact, replace(program, subnets=infos), tensors)


def _latencies(artifact: Path, threads: int | None, batch: int, repeats: int) -> list[tuple[float, float]]:
    """(p50, p95) in milliseconds of every subnet in the engine, on random inputs."""
    import numpy as np

    from rheostat.artifact import read_program
    from rheostat.measure import latency
    from rheostat.run.engine import Engine

    shape = (batch, *read_program(artifact).input.shape)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with Engine(artifact, threads=threads) as engine:
        return latency(engine, x, repeats=repeats)


def _subnet_table(infos: Iterable[SubnetInfo]) -> Table:
    table = _table("subnet", "parameters", "MACs", "accuracy", "p50", "p95", "bytes")
    for info in infos:
        table.add_row(
            info.name,
            f"{info.parameters:,}",
            f"{info.macs:,}",
            "–" if info.accuracy is None else f"{info.accuracy:.2%}",
            _time(info.latency_ms_p50),
            _time(info.latency_ms_p95),
            f"{info.size_bytes:,}",
        )
    return table


def _dial_table(turns: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """Show the stream in 16 parts: the budget, the subnet that most inputs of a part got, and what came of it."""
    table = _table("inputs", "budget", "subnet", "dial", "latency p50", "correct")
    length = -(-len(turns) // 16)
    for start in range(0, len(turns), length):
        part = turns[start : start + length]
        chosen = [turn["subnet"] for turn in part]
        index: int = max(set(chosen), key=chosen.count)
        times = sorted(turn["latency_ms"] for turn in part)
        table.add_row(
            f"{start}–{start + len(part) - 1}",
            _time(part[len(part) // 2]["budget_ms"]),
            names[index],
            "█" * (2 * index + 2) + "░" * (2 * (len(names) - index - 1)),
            _time(times[len(times) // 2]),
            f"{sum(turn['correct'] for turn in part) / len(part):.0%}",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(header_style="bold")
    for index, column in enumerate(columns):
        justify = "left" if index == 0 or column in ("pinned", "dial") else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column != "pinned")
    return table


def _time(ms: float | None) -> str:
    if ms is None:
        return "–"
    return f"{1000 * ms:.1f} µs" if ms < 1 else f"{ms:.2f} ms"


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:g}"


def _console(*tables: Table, stderr: bool = False) -> Console:
    """Return a console that prints names from files as they are, brackets included, and wide where nobody looks on.

    No narrower than `tables`: a number that is cut off reads as another one.
    """
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 240
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, *(console.measure(t, options=unlimited).minimum for t in tables), 0)
    return console


def _stdout_for_json_only(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Send what training prints to the error stream while the output belongs to a program."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str) -> NoReturn:
    print(f"rheostat: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
