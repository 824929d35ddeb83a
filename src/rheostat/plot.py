"""Pictures of supernets: channels per layer, accuracy over latency or size, the turning dial; and pages of them."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rheostat.program import Conv2d, Linear, Program
from rheostat.spec import SubnetInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rheostat.train.admm import Update

_INK, _MUTED, _LINE, _ACCENT = "#1c2733", "#66737f", "#d9dfe4", "#d9480f"
_LIGHT, _DARK = (0x8F, 0xD0, 0xD6), (0x0B, 0x3C, 0x5D)


@dataclass(frozen=True)
class Turn:
    """One input of a stream: the latency budget it came with, the subnet it got, and what was delivered."""

    budget_ms: float
    subnet: int
    latency_ms: float
    correct: bool


@dataclass(frozen=True)
class Curve:
    """The operating points of one network: what each costs, in the unit of its axis, and its accuracy, a fraction."""

    name: str
    cost: tuple[float, ...]
    accuracy: tuple[float, ...]


def layers(program: Program) -> list[tuple[str, tuple[int, ...]]]:
    """List every convolution and linear layer with the output channels that each subnet keeps, in execution order.

    A program that the engine cannot run has no layers to list; its channel groups take their place.

    >>> layers(program)[:2]  # doctest: +SKIP
    [('conv1', (4, 8, 12, 16)), ('layer1.0.conv1', (4, 8, 12, 16))]
    """
    if program.ops is None:
        return [(group.name, group.widths) for group in program.groups]
    return [
        (
            op.weight.removesuffix(".weight"),
            tuple(program.values[op.output].kept(k) for k in range(len(program.subnets))),
        )
        for op in program.ops
        if isinstance(op, Conv2d | Linear)
    ]


def accuracy_latency(infos: Sequence[SubnetInfo]) -> Figure:
    """Draw accuracy over latency, one point a subnet: the median, with a line to the 95th percentile.

    Raises ValueError when the subnets' accuracy or latency was never measured, and when there is no subnet.
    """
    _check_some(infos, "subnet")
    points = []
    for info in infos:
        if info.accuracy is None or info.latency_ms_p50 is None or info.latency_ms_p95 is None:
            raise ValueError(
                f"subnet {info.name}: got no accuracy or latency; want both: Supernet.record before save"
            )
        points.append((info.latency_ms_p50, info.latency_ms_p95, 100 * info.accuracy))
    figure, (axes,) = _canvas(3.6)
    scale, unit = _time_unit(max(p95 for _, p95, _ in points))
    median, tail, accuracy = (
        [scale * p[0] for p in points],
        [scale * p[1] for p in points],
        [p[2] for p in points],
    )
    axes.plot(median, accuracy, color=_LINE, linewidth=2, zorder=1)
    shades = _shades(len(points))
    axes.hlines(accuracy, median, tail, color=shades, linewidth=2, alpha=0.6, zorder=2)
    axes.scatter(median, accuracy, s=90, color=shades, edgecolor="white", linewidth=1.5, zorder=3)
    for info, x, y in zip(infos, median, accuracy, strict=True):
        axes.annotate(
            _label(info.name),
            (x, y),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    axes.set_xlim(0, 1.08 * max(tail))
    axes.margins(y=0.25)
    axes.set_xlabel(f"latency, {unit} (dot: median, line: to the 95th percentile)")
    axes.set_ylabel("accuracy, %")
    return figure


def curves(panels: Mapping[str, Sequence[Curve]], label: str) -> Figure:
    """Draw accuracy over cost, a panel under another by title, in each a line for every network.

    label: what the costs are, with their unit. Raises ValueError when there is no panel.
    """
    figure, all_axes = _canvas(3.4, tuple(panels))
    names = list(dict.fromkeys(curve.name for networks in panels.values() for curve in networks))
    colours = dict(zip(names, _shades(len(names)), strict=True))
    for axes, networks in zip(all_axes, panels.values(), strict=True):
        for curve in networks:
            percent = [100 * share for share in curve.accuracy]
            style = {"color": colours[curve.name], "label": _label(curve.name), "linewidth": 1.8}
            axes.plot(curve.cost, percent, "o-", **style)
        axes.set_xlim(0)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="lower right", frameon=False)
    return figure


def channels(names: Sequence[str], rows: Sequence[tuple[str, tuple[int, ...]]]) -> Figure:
    """Draw how many channels of each layer every subnet keeps, as bars within bars: `rows` as `layers` gives them."""
    figure, (axes,) = _canvas(3.8)
    _draw_channels(axes, names, rows)
    return figure


def channels_of(programs: Mapping[str, Program]) -> Figure:
    """Draw `channels` of several programs, a panel under another by title. Raises ValueError when there is none."""
    figure, all_axes = _canvas(3.8, tuple(programs))
    for axes, program in zip(all_axes, programs.values(), strict=True):
        _draw_channels(axes, [info.name for info in program.subnets], layers(program))
    return figure


def _draw_channels(axes: Axes, names: Sequence[str], rows: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    positions = range(len(rows))
    shades = _shades(len(names))
    for index in reversed(range(len(names))):
        label = _label(names[index])
        heights = [kept[index] for _, kept in rows]
        axes.bar(
            positions, heights, width=0.82, color=shades[index], label=label, zorder=2 + len(names) - index
        )
    if len(rows) <= 40:
        axes.set_xticks(
            positions, [_label(name) for name, _ in rows], rotation=55, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(axis="x", labelsize=7.5)
    else:
        axes.set_xlabel("layer, in order of execution")
    axes.margins(x=0.01)
    axes.set_ylabel("channels kept")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1), frameon=False
    )


def residuals(updates: Sequence[Update]) -> Figure:
    """Draw how far ADMM was from a pruned network at each update: the worst parameter's line, and each one's faintly.

    Raises ValueError when there is no update.

    >>> residuals(found.history).savefig("admm.svg")  # doctest: +SKIP
    """
    _check_some(updates, "update")
    figure, (axes,) = _canvas(3.6)
    steps = range(1, len(updates) + 1)
    kinds = (
        ("primal residual", [u.primal for u in updates], _ACCENT),
        ("dual residual", [u.dual for u in updates], "#{:02x}{:02x}{:02x}".format(*_DARK)),
        ("mask churn", [u.churn for u in updates], _MUTED),
    )
    for label, values, color in kinds:
        for name in values[0]:
            axes.plot(steps, [v[name] for v in values], color=color, linewidth=0.8, alpha=0.3)
        axes.plot(steps, [max(v.values()) for v in values], color=color, linewidth=2, label=label, marker="o")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("update")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def dial(names: Sequence[str], turns: Sequence[Turn]) -> Figure:
    """Draw a stream of inputs: the budget as a line, what each input took as a dot in its subnet's colour.

    Raises ValueError when there is no turn.
    """
    _check_some(turns, "turn")
    figure, (axes,) = _canvas(3.4)
    shades = _shades(len(names))
    scale, unit = _time_unit(max(turn.budget_ms for turn in turns))
    steps = range(len(turns))
    axes.step(
        steps,
        [scale * t.budget_ms for t in turns],
        where="mid",
        color=_ACCENT,
        linewidth=1.6,
        label="budget",
        zorder=3,
    )
    for index, name in enumerate(names):
        chosen = [
            (step, scale * t.latency_ms) for step, t in zip(steps, turns, strict=True) if t.subnet == index
        ]
        if chosen:
            label = _label(name)
            axes.scatter(*zip(*chosen, strict=True), s=9, color=shades[index], label=label, zorder=2)
    # A single interruption by another process would squeeze everything else to the bottom.
    axes.set_ylim(0, 1.25 * scale * max(turn.budget_ms for turn in turns))
    axes.margins(x=0.01)
    axes.set_xlabel("input")
    axes.set_ylabel(f"latency, {unit}")
    axes.legend(ncols=len(names) + 1, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, markerscale=2)
    return figure


def report(path: str | os.PathLike[str], title: str, program: Program, turns: Sequence[Turn] = ()) -> None:
    """Write one HTML page about an artifact that needs no other file: curve, table, channels and the turning dial.

    Raises ValueError when the program holds no measured accuracy and latency.

    >>> report("report.html", "Digits", read_program("digits.safetensors"))  # doctest: +SKIP
    """
    infos = program.subnets
    names = [info.name for info in infos]
    smallest, largest = infos[0], infos[-1]
    curve = _picture(accuracy_latency(infos), "Accuracy over latency, one point for each subnet")
    bars = _picture(channels(names, layers(program)), "Channels that each subnet keeps in each layer")
    # `accuracy_latency` has refused a program without measured numbers.
    least, most = (100 * (info.accuracy or 0) for info in (smallest, largest))
    faster = (largest.latency_ms_p50 or 0) / (smallest.latency_ms_p50 or 1)
    tiles = [
        (str(len(infos)), "operating points in one file"),
        (f"{least:.1f}–{most:.1f} %", "accuracy, smallest to largest"),
        (f"{faster:.1f}×", "faster at the smallest"),
    ]
    if smallest.macs:
        tiles.append((f"{largest.macs / smallest.macs:.0f}×", "fewer multiplications"))
    sections = [
        (
            "Accuracy for latency",
            "Every point is the same set of weights; the engine changes integers.",
            curve,
        ),
        (
            "The subnets",
            "Median and 95th percentile of one inference, all subnets measured in turns.",
            _table(infos),
        ),
        (
            "Channels per layer",
            "Each smaller subnet keeps the first channels of the larger: bars within bars.",
            bars,
        ),
    ]
    if turns:
        picture = _picture(dial(names, turns), "Latency budget and delivered latency of a stream of inputs")
        within = sum(turn.latency_ms <= turn.budget_ms for turn in turns)
        text = (
            f"{len(turns)} inputs under a changing budget, on a process without PyTorch: "
            f"{100 * sum(turn.correct for turn in turns) / len(turns):.1f} % answered correctly, "
            f"{100 * within / len(turns):.1f} % within their budget."
        )
        sections.insert(2, ("The dial turning", text, picture))
    facts = " · ".join(f"{key}: {value}" for key, value in sorted(program.provenance.items()))
    _write_page(path, title, f"{program.model}, made by {program.producer}", tiles, sections, facts)


def check_path(path: Path) -> None:
    """Raise ValueError for a place where `save` could not write a figure."""
    if path.suffix not in (".html", ".svg", ".png", ".pdf"):
        raise ValueError(f"{path}: want a name that ends in .html, .svg, .png or .pdf")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: no such directory; want one that exists")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{path}: a folder, or a place that cannot be written to; want another name")


def save(path: str | os.PathLike[str], title: str, text: str, figure: Figure) -> None:
    """Write a figure: a page of its own where `path` ends in .html, else as Matplotlib does (.svg, .png, .pdf).

    Raises ValueError for another ending, and for a folder that is not there.
    """
    path = Path(path)
    check_path(path)
    if path.suffix == ".html":
        _write_page(path, title, text, [], [(title, text, _picture(figure, title))], "")
        return
    import matplotlib as mpl

    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with mpl.rc_context({"svg.hashsalt": "rheostat"}):
        # Dates would make two drawings of one figure differ.
        figure.savefig(path, dpi=200, metadata=undated)


def _write_page(
    path: str | os.PathLike[str],
    title: str,
    subtitle: str,
    tiles: Sequence[tuple[str, str]],
    sections: Sequence[tuple[str, str, str]],
    facts: str,
) -> None:
    """One page of numbers (text, what it is), sections (heading, text, HTML), and small print."""
    body = "".join(
        f"<section><h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>{content}</section>"
        for heading, text, content in sections
    )
    page = _PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        tiles="".join(f"<div><b>{html.escape(n)}</b><span>{html.escape(t)}</span></div>" for n, t in tiles),
        body=body,
        facts=html.escape(facts),
    )
    Path(path).write_text(page, encoding="utf-8")


def _canvas(height: float, titles: Sequence[str] = ("",)) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, one under another."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError('plots need Matplotlib: pip install "rheostat[plot]"') from None
    _check_some(titles, "panel")
    figure = Figure(figsize=(9, height * len(titles)), layout="constrained")
    FigureCanvasSVG(figure)
    panels = [figure.add_subplot(len(titles), 1, index + 1) for index in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        # Legends stand between title and axes.
        axes.set_title(title, loc="left", fontsize=10, color=_INK, pad=24 if title else None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_LINE)
        axes.tick_params(colors=_MUTED, length=0, labelsize=9)
        axes.grid(axis="y", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=_MUTED, fontsize=9)
    return figure, panels


def _check_some(things: Sized, what: str) -> None:
    if not len(things):
        raise ValueError(f"plot: nothing to draw; want at least one {what}")


def _picture(figure: Figure, description: str) -> str:
    """`figure` as an image inside the page: its own document, so that the ids of two pictures cannot collide."""
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rheostat", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/svg+xml;base64,{data}">'


def _table(infos: Sequence[SubnetInfo]) -> str:
    scale, unit = _time_unit(max(info.latency_ms_p95 or 0 for info in infos))
    rows = "".join(
        f"<tr><th scope=row>{html.escape(info.name)}</th><td>{info.parameters:,}</td><td>{info.macs:,}</td>"
        f"<td>{100 * (info.accuracy or 0):.2f} %</td><td>{scale * (info.latency_ms_p50 or 0):.1f} {unit}</td>"
        f"<td>{scale * (info.latency_ms_p95 or 0):.1f} {unit}</td><td>{info.size_bytes:,}</td></tr>"
        for info in infos
    )
    heads = ("subnet", "parameters", "MACs", "accuracy", "p50", "p95", "bytes")
    return f"<table><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr>{rows}</table>"


def _shades(count: int) -> list[str]:
    """Return one colour a subnet, the same in every picture: the larger, the darker."""
    steps = [index / max(count - 1, 1) for index in range(count)]
    mixed = [[round(a + (b - a) * step) for a, b in zip(_LIGHT, _DARK, strict=True)] for step in steps]
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in mixed]


def _time_unit(largest_ms: float) -> tuple[float, str]:
    return (1000, "µs") if largest_ms < 1 else (1, "ms")


def _label(name: str) -> str:
    """Return a name as Matplotlib prints it: widths with their sign, nothing read as a formula or hidden for its _."""
    if name.replace(".", "", 1).isdigit():
        return f"{name}×"
    return name.replace("$", r"\$").replace("_", " _", name.startswith("_"))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light; }}
  body {{ margin: 0; background: #f3f6f8; color: #1c2733; line-height: 1.5;
         font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }}
  main {{ max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem; }}
  h1 {{ font-size: 2rem; margin: 0; letter-spacing: -.02em; }}
  h2 {{ font-size: 1.15rem; margin: 0; }}
  header p, section p, footer {{ color: #66737f; margin: .2rem 0 1rem; }}
  .tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; }}
  .tiles div, section {{ background: #fff; border: 1px solid #e1e7eb; border-radius: .75rem; }}
  .tiles div {{ padding: 1rem 1.25rem; }}
  .tiles b {{ display: block; font-size: 1.5rem; color: #0b4f6c; }}
  .tiles span {{ color: #66737f; font-size: .9rem; }}
  section {{ padding: 1.25rem 1.5rem; margin-top: 1.25rem; overflow-x: auto; }}
  img {{ display: block; width: 100%; max-width: 56rem; height: auto; margin: 0 auto; }}
  table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
  th, td {{ text-align: right; padding: .45rem .6rem; border-bottom: 1px solid #e9eef1; white-space: nowrap; }}
  tr:last-child > * {{ border-bottom: 0; }}
  th:first-child {{ text-align: left; }}
  th[scope=col] {{ color: #66737f; font-weight: 500; }}
  footer {{ margin-top: 1.5rem; font-size: .85rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<div class="tiles">{tiles}</div>
{body}
<footer>{facts}</footer>
</main>
</body>
</html>
"""
