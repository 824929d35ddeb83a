"""The pictures hold the numbers they were given, and the report is one page that needs nothing else."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

import rheostat as rh
from cases import CASES
from rheostat.artifact import read_program
from rheostat.plot import (
    Curve,
    Turn,
    accuracy_latency,
    channels,
    channels_of,
    curves,
    dial,
    layers,
    report,
    residuals,
    save,
)
from rheostat.program import Program
from rheostat.train.admm import Update

TURNS = [
    Turn(0.03, 1, 0.02, True),
    Turn(0.02, 0, 0.01, True),
    Turn(0.005, 0, 0.01, False),
    Turn(0.03, 1, 0.02, True),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    case = next(case for case in CASES if case.name == "lenet")
    net = rh.Supernet(graph := rh.trace(case.model(), case.inputs()), rh.uniform(graph, (0.5, 1.0))).eval()
    net.record(0, accuracy=0.9, latency_ms_p50=0.01, latency_ms_p95=0.015)
    net.record(1, accuracy=0.95, latency_ms_p50=0.02, latency_ms_p95=0.03)
    path = tmp_path_factory.mktemp("plot") / "net.safetensors"
    rh.save(net, path, provenance={"data": "<script>alert(1)</script>"})
    return read_program(path)


def test_layers_are_those_of_the_modules(program: Program) -> None:
    case = next(case for case in CASES if case.name == "lenet")
    net = rh.Supernet(graph := rh.trace(case.model(), case.inputs()), rh.uniform(graph, (0.5, 1.0)))
    small, large = dict(net[0].named_modules()), dict(net[1].named_modules())
    for name, kept in layers(program):
        assert kept == tuple(m.weight.shape[0] for m in (small[name], large[name]))
    assert len(layers(program)) == sum(
        isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in large.values()
    )


def test_layers_without_ops_are_groups(program: Program) -> None:
    assert layers(replace(program, ops=None)) == [(group.name, group.widths) for group in program.groups]


def test_accuracy_latency_draws_each_subnet(program: Program) -> None:
    (axes,) = accuracy_latency(program.subnets).axes
    dots = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(np.asarray(dots), [[10, 90], [20, 95]])
    assert [text.get_text() for text in axes.texts] == ["0.5×", "1.0×"]
    assert "µs" in axes.get_xlabel()


def test_unmeasured_subnets_are_refused(program: Program) -> None:
    unmeasured = replace(program.subnets[0], latency_ms_p50=None)
    with pytest.raises(ValueError, match=r"subnet 0\.5: got no accuracy or latency"):
        accuracy_latency([unmeasured, program.subnets[1]])


def test_channels_are_bars_within_bars(program: Program) -> None:
    rows = layers(program)
    (axes,) = channels(["0.5", "1.0"], rows).axes
    large, small = ([bar.get_height() for bar in container] for container in axes.containers)
    assert large == [kept[1] for _, kept in rows]
    assert small == [kept[0] for _, kept in rows]


def test_panels_of_channels_have_their_own_layers_and_titles(program: Program) -> None:
    figure = channels_of({"both": program, "largest": replace(program, ops=None)})
    both, groups = figure.axes
    assert [axes.get_title(loc="left") for axes in (both, groups)] == ["both", "largest"]
    assert [bar.get_height() for bar in both.containers[0]] == [kept[1] for _, kept in layers(program)]
    assert [bar.get_height() for bar in groups.containers[1]] == [group.widths[0] for group in program.groups]
    with pytest.raises(ValueError, match="nothing to draw"):
        channels_of({})


def test_curves_are_lines_of_per_cent() -> None:
    few, many = Curve("S-NN", (1.0, 4.0), (0.8, 0.9)), Curve("Ours-M", (2.0, 3.0, 5.0), (0.7, 0.8, 0.95))
    first, second, third = curves({"CPU": [few, many], "GPU": [few], "": [many]}, "latency, ms").axes
    assert third.lines[0].get_color() == first.lines[1].get_color() != second.lines[0].get_color()
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["CPU", "GPU"]
    assert first.get_xlabel() == "latency, ms"
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["S-NN", "Ours-M"]
    np.testing.assert_allclose(first.lines[1].get_xydata(), [[2, 70], [3, 80], [5, 95]])
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[1, 80], [4, 90]])


@pytest.mark.parametrize("ending", ["html", "svg", "png", "pdf"])
def test_a_figure_is_saved_as_its_ending_says(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"figure.{ending}"
    save(path, "Nine <subnets>", "a source & more", curves({"": [Curve("a", (1.0,), (0.5,))]}, "MACs"))
    start = {"html": b"<!doctype html>", "svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(start)
    if ending == "html":
        page = Page(path.read_text(encoding="utf-8"))
        assert "Nine <subnets>" in page.text and "a source & more" in page.text
        assert [tag for tag, _ in page.attributes].count("img") == 1


def test_an_ending_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"figure\.gif: want a name that ends in \.html, \.svg, \.png or \.pdf"
    ):
        save(tmp_path / "figure.gif", "", "", curves({"": [Curve("a", (1.0,), (0.5,))]}, ""))


def test_dial_draws_every_turn() -> None:
    (axes,) = dial(["0.5", "1.0"], TURNS).axes
    small, large = (np.asarray(dots.get_offsets()) for dots in axes.collections)
    np.testing.assert_allclose(small, [[1, 10], [2, 10]])
    np.testing.assert_allclose(large, [[0, 20], [3, 20]])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [30, 20, 5, 30])


def test_a_name_with_a_leading_underscore_is_in_the_legend() -> None:
    (bars,) = channels(["_tiny_", "big"], [("l", (1, 2))]).axes
    assert [text.get_text().strip() for text in bars.get_legend().get_texts()] == ["_tiny_", "big"]


def test_nothing_to_draw() -> None:
    for draw in (lambda: accuracy_latency([]), lambda: residuals([]), lambda: dial(["a"], [])):
        with pytest.raises(ValueError, match="nothing to draw; want at least one"):
            draw()


def test_a_report_of_a_network_that_multiplies_nothing(program: Program, tmp_path: Path) -> None:
    empty = replace(program, subnets=tuple(replace(info, macs=0) for info in program.subnets))
    report(tmp_path / "report.html", "Pooling", empty)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "faster at the smallest" in page and "fewer multiplications" not in page


def test_names_are_not_read_as_formulas(tmp_path: Path) -> None:
    figure = channels([r"$\frac$", "b"], [(r"conv$\oops$", (1, 2)), ("linear", (2, 2))])
    figure.savefig(tmp_path / "channels.svg")
    assert (tmp_path / "channels.svg").stat().st_size > 0


class Page(HTMLParser):
    """The tags and the text of a page, with every tag closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_needs_no_other_file(program: Program, tmp_path: Path) -> None:
    report(tmp_path / "report.html", "Dial & <b>curve</b>", program, TURNS)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert {tag for tag, _ in page.attributes}.isdisjoint({"script", "link", "iframe", "b0"})
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import", source)
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture["alt"]
        kind, _, data = (picture["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = ET.fromstring(base64.b64decode(data))
        assert svg.tag.endswith("svg")
        assert all(
            value.startswith(("#", "data:"))
            for element in svg.iter()
            for key, value in element.items()
            if key.endswith("href")
        )
    assert "Dial & <b>curve</b>" in page.text
    assert "<script>alert(1)</script>" in page.text  # as text, not as a tag
    for number in (
        "90.00 %",
        "95.00 %",
        "10.0 µs",
        "30.0 µs",
        f"{program.subnets[1].macs:,}",
        "75.0 % answered",
    ):
        assert number in page.text


def test_report_is_the_same_every_time(program: Program, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        report(tmp_path / name, "Title", program)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert "dial turning" not in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_residuals_draw_every_parameter_and_the_worst() -> None:
    updates = [
        Update(1e-3, 2.0, {"a": 0.5, "b": 0.25}, {"a": 0.1, "b": 0.2}, {"a": 0.0, "b": 0.01}, 1.0, 0.9),
        Update(1e-2, 2.0, {"a": 0.125, "b": 0.2}, {"a": 0.05, "b": 0.01}, {"a": 0.0, "b": 0.0}, 0.9, 0.9),
    ]
    (axes,) = residuals(updates).axes
    lines = [(line.get_label(), [float(y) for y in np.asarray(line.get_ydata())]) for line in axes.lines]
    assert [ys for label, ys in lines if not str(label).startswith("_")] == [
        [0.5, 0.2],
        [0.2, 0.05],
        [0.01, 0.0],
    ]
    assert [ys for _, ys in lines[:2]] == [[0.5, 0.125], [0.25, 0.2]]
