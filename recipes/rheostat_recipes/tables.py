"""The papers' tables beside our own numbers: expected/*.json holds theirs, results/*.json what our recipes measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """One number of a paper's table and ours, the mean over seeds, or None where nothing was measured.

    row, column: the paper's own labels. spread: largest minus smallest over the seeds, None for fewer than two.
    """

    row: str
    column: str
    paper: float
    ours: float | None
    unit: str
    seeds: int
    spread: float | None
    commit: str | None
    hardware: str | None
    note: str


@dataclass(frozen=True)
class Table:
    """A table of a paper: its title, where it stands, what to know when reading it, and its cells row by row."""

    title: str
    source: str
    note: str
    cells: tuple[Cell, ...]


def names() -> list[tuple[str, int]]:
    """List the tables there are, as (paper, number).

    >>> names()[0]
    ('dynamic', 1)
    """
    stems = sorted(path.stem for path in (HERE / "expected").glob("*.json"))
    return [(stem.rstrip("0123456789"), int(stem.lstrip("abcdefghijklmnopqrstuvwxyz"))) for stem in stems]


def load_table(paper: str, number: int, results_dir: Path | None = None) -> Table:
    """Read a table with our numbers from `results_dir` (searched with its subdirectories), or from the kept results.

    Raises ValueError for a table that does not exist, a directory that does not, or a result that cannot be read.

    >>> load_table("dynamic", 1).cells[0].paper
    89.8
    """
    if (paper, number) not in names():
        tables = ", ".join(f"{p} {n}" for p, n in names())
        raise ValueError(f"table: got {paper} {number}; want one of: {tables}")
    if results_dir is not None and not results_dir.is_dir():
        raise ValueError(f"{results_dir}: no such directory; want one with results of rheostat train")
    expected = json.loads((HERE / "expected" / f"{paper}{number}.json").read_text(encoding="utf-8"))
    results = _results(results_dir or HERE / "results")
    cells = tuple(
        _cell(cell, [r for r in results if r["recipe"] == cell.get("recipe")]) for cell in expected["cells"]
    )
    return Table(expected["title"], expected["source"], expected["note"], cells)


def _results(folder: Path) -> list[dict[str, Any]]:
    results = []
    for path in sorted(folder.rglob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); want a result of rheostat train") from None
        # A smoke run trained on something else: its numbers belong in no table.
        if (
            isinstance(result, dict)
            and {"recipe", "subnets", "seed"} <= result.keys()
            and not result.get("smoke")
        ):
            results.append(result)
    return results


def _cell(cell: dict[str, Any], results: Sequence[dict[str, Any]]) -> Cell:
    factor = {"%": 0.01}.get(cell["unit"]) or (float(cell["unit"]) if cell["unit"].startswith("1e") else 1.0)
    measured = {}
    for result in results:
        subnet = next((s for s in result["subnets"] if s["name"] == cell["subnet"]), {})
        if subnet.get(cell["quantity"]) is not None:
            measured[result["seed"]] = (subnet[cell["quantity"]] / factor, result)
    numbers = [number for number, _ in measured.values()]
    return Cell(
        row=cell["row"],
        column=cell["column"],
        paper=cell["paper"],
        ours=round(sum(numbers) / len(numbers), 2) if numbers else None,
        unit=cell["unit"],
        seeds=len(numbers),
        spread=round(max(numbers) - min(numbers), 2) if len(numbers) > 1 else None,
        commit=_joined(result["commit"] for _, result in measured.values()),
        hardware=_joined(result["hardware"] for _, result in measured.values()),
        note=cell.get("note", ""),
    )


def _joined(texts: Any) -> str | None:
    """The different texts of several runs, or None when there are none."""
    return ", ".join(dict.fromkeys(text for text in texts if text)) or None
