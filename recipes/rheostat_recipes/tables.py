"""The papers' tables beside our own numbers: expected/*.json holds theirs, results/*.json what our recipes measured."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE / "results"
"""The results that the project keeps."""


@dataclass(frozen=True)
class Cell:
    """One number of a paper's table and ours, the mean over seeds, or None where nothing was measured.

    row, column: the paper's own labels. paper: None in rows of ours that the paper does not have. spread: largest minus
    smallest over the seeds, None for fewer than two. recipe: what measures it, None for nothing.
    """

    row: str
    column: str
    paper: float | None
    ours: float | None
    unit: str
    seeds: int
    spread: float | None
    commit: str | None
    hardware: str | None
    notes: tuple[str, ...]
    recipe: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a paper: its title, where it stands, what to know when reading it, and its cells row by row.

    needs: of each recipe that measures something in it, the (subnet, quantity) pairs that the table shows.
    """

    title: str
    source: str
    note: str
    cells: tuple[Cell, ...]
    needs: Mapping[str, frozenset[tuple[str, str]]]


def names() -> list[tuple[str, int]]:
    """List the tables there are, as (paper, number).

    >>> names()[0]
    ('dynamic', 1)
    """
    stems = sorted(path.stem for path in (HERE / "expected").glob("*.json"))
    return [(stem.rstrip("0123456789"), int(stem.lstrip("abcdefghijklmnopqrstuvwxyz"))) for stem in stems]


def load_table(paper: str, number: int, folders: Sequence[Path] = (KEPT,)) -> Table:
    """Read a table with our numbers from `folders`, searched with their subdirectories; see `load_results`.

    Raises ValueError for a table that does not exist, a directory that does not, or a result that cannot be read.

    >>> load_table("dynamic", 1).cells[0].paper
    89.8
    """
    if (paper, number) not in names():
        tables = ", ".join(f"{p} {n}" for p, n in names())
        raise ValueError(f"table: got {paper} {number}; want one of: {tables}")
    results = load_results(folders)
    expected = json.loads((HERE / "expected" / f"{paper}{number}.json").read_text(encoding="utf-8"))
    recipes = dict.fromkeys(cell["recipe"] for cell in expected["cells"] if "recipe" in cell)
    cells = tuple(
        _cell(cell, [r for r in results if r["recipe"] == cell.get("recipe")]) for cell in expected["cells"]
    )
    needs = {
        recipe: frozenset(
            (c["subnet"], c["quantity"]) for c in expected["cells"] if c.get("recipe") == recipe
        )
        for recipe in recipes
    }
    notes = [expected["note"]]
    for task, note in sampling_times(folders).items():
        notes += [note] if f"{task}_single_path" in recipes else []
    return Table(expected["title"], expected["source"], "; ".join(filter(None, notes)), cells, needs)


def missing(
    needs: Mapping[str, Collection[tuple[str, str]]],
    folders: Sequence[Path] = (KEPT,),
    seeds: Sequence[int] = (0,),
    max_epochs: int | None = None,
) -> list[tuple[str, int]]:
    """List every recipe and seed whose results do not hold all that it is needed for.

    needs: of a `Table` or a `Figure`. max_epochs: shorter runs count if they have had so many; None: only full ones.
    Raises what `load_table` raises.

    >>> missing({"lenet5_mnist": {("0.25", "accuracy"), ("1.0", "macs")}}, seeds=(0, 100))
    [('lenet5_mnist', 100)]
    """
    found: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for result in load_results(folders):
        if _length(result) < (max_epochs or math.inf):
            continue
        have = {(s["name"], key) for s in result["subnets"] for key, value in s.items() if value is not None}
        found.setdefault((result["recipe"], result["seed"]), set()).update(have)
    return [
        (recipe, seed)
        for seed in seeds
        for recipe, wanted in needs.items()
        if (recipe, seed) not in found or set(wanted) - found[recipe, seed]
    ]


def sampling_times(folders: Sequence[Path] = (KEPT,)) -> dict[str, str]:
    """Say for each network how long multi-path sampling took, and how much longer than single-path.

    Means over the seeds with which both have been run.
    """
    seconds: dict[tuple[str, str, float], dict[int, float]] = {}
    for record, path in _json_files(folders, "subnets-*.json"):
        kinds = {"task": str, "family": str, "seed": int, "seconds": (int, float)}
        if not isinstance(record, dict) or any(not isinstance(record.get(k), t) for k, t in kinds.items()):
            raise ValueError(f"{path}: not the subnets of a sampling; want what rheostat train wrote")
        if not record.get("smoke"):
            key = (record["task"], record["family"], _length(record))
            seconds.setdefault(key, {})[record["seed"]] = record["seconds"]
    told = {}
    for (task, family, length), multi in sorted(seconds.items()):  # of several lengths the longest
        single = seconds.get((task, "single_path", length), {})
        if family == "multi_path" and (seeds := multi.keys() & single.keys()):
            one, many = (sum(times[seed] for seed in seeds) / len(seeds) for times in (single, multi))
            told[task] = (
                f"multi-path sampling took {many:.0f} s, {many / one:.2f} times as long as single-path ({one:.0f} s)"
                f"{'' if length == math.inf else f', with --epochs {length}'}; the paper says about 2.75 times"
            )
    return told


def load_results(folders: Sequence[Path] = (KEPT,)) -> list[dict[str, Any]]:
    """Read every result in `folders` and their subdirectories; "path" is where it lies.

    Of runs of one recipe, seed and length the last is the one that counts, so that own runs come after the kept ones.
    Raises ValueError for a directory that does not exist and for a file that is not JSON, or holds half a result.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such directory; want one with results of rheostat train")
    return [
        _whole(result, path)
        for result, path in _json_files(folders, "*.json")
        # A smoke run trained on something else: its numbers belong in no table.
        if isinstance(result, dict)
        and {"recipe", "subnets", "seed"} <= result.keys()
        and not result.get("smoke")
    ]


def longest(recipe: str, folders: Sequence[Path] = (KEPT,)) -> list[dict[str, Any]]:
    """Read the results of a recipe, one a seed, in their order: of the longest training alone where lengths differ.

    Raises what `load_results` raises.
    """
    return _longest([result for result in load_results(folders) if result["recipe"] == recipe])


def _longest(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    most = max(map(_length, results), default=math.inf)
    by_seed = {result["seed"]: result for result in results if _length(result) == most}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _whole(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """The result with its path; ValueError where it is not what a run writes."""
    subnets = result["subnets"]
    good = (
        isinstance(result["recipe"], str)
        and isinstance(result["seed"], int)
        and isinstance(subnets, list)
        and all(isinstance(subnet, dict) and isinstance(subnet.get("name"), str) for subnet in subnets)
        and all(isinstance(number, int | float | None) for number in _numbers(result))
    )
    if not good:
        raise ValueError(f"{path}: not a whole result; want what rheostat train wrote")
    return {**result, "path": path}


def _numbers(result: dict[str, Any]) -> Iterator[Any]:
    yield result.get("max_epochs")
    for subnet in result["subnets"]:
        yield from (value for key, value in subnet.items() if key != "name")


def _json_files(folders: Sequence[Path], pattern: str) -> Iterator[tuple[Any, Path]]:
    for path in (path for folder in folders for path in sorted(folder.rglob(pattern))):
        try:
            yield json.loads(path.read_text(encoding="utf-8")), path
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); want a result of rheostat train") from None


def _cell(cell: dict[str, Any], results: Sequence[dict[str, Any]]) -> Cell:
    factor = {"%": 0.01}.get(cell["unit"]) or (float(cell["unit"]) if cell["unit"].startswith("1e") else 1.0)

    def number(result: dict[str, Any]) -> Any:
        subnet = next((s for s in result["subnets"] if s["name"] == cell["subnet"]), {})
        return subnet.get(cell["quantity"])

    measured = _longest([result for result in results if number(result) is not None])
    numbers = [number(result) / factor for result in measured]
    short = {_length(result) for result in measured} - {math.inf}
    notes = [cell["note"]] if "note" in cell else []
    notes += [
        f"ours: no training longer than {epochs} epochs, no sampling than {3 * epochs}" for epochs in short
    ]
    notes += dict.fromkeys(f"ours: {note}" for result in measured if (note := result.get("note")))
    notes += [f"ours: mean of {len(numbers)} seeds, ± half their range"] if len(numbers) > 1 else []
    return Cell(
        row=cell["row"],
        column=cell["column"],
        paper=cell.get("paper"),
        ours=round(sum(numbers) / len(numbers), 2) if numbers else None,
        unit=cell["unit"],
        seeds=len(numbers),
        spread=round(max(numbers) - min(numbers), 2) if len(numbers) > 1 else None,
        commit=_joined(result.get("commit") for result in measured),
        hardware=_joined(result.get("hardware") for result in measured),
        notes=tuple(notes),
        recipe=cell.get("recipe"),
    )


def _length(result: dict[str, Any]) -> float:
    """The epochs that no training of a run was longer than; infinite for one of full length."""
    return result.get("max_epochs") or math.inf


def _joined(texts: Any) -> str | None:
    """The different texts of several runs, or None when there are none."""
    return ", ".join(dict.fromkeys(text for text in texts if text)) or None
