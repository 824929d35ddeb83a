"""The papers' tables: complete, in the papers' own labels; ours next to them only where they were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rheostat.artifact import read_program
from rheostat_recipes.queue import RECIPES
from rheostat_recipes.tables import HERE, load_table, longest, missing, names, sampling_times

# Rows times columns of the paper's, and of our own without numbers of the paper.
SIZES = {
    ("dynamic", 1): 4 * 4,
    ("dynamic", 2): 4 * 4,
    ("dynamic", 3): 4 * 4 * 4 + 3 * 3 * 4,
    ("dynamic", 4): 2 * 4 * 4 + 2 * 4 * 4,
    ("dynamic", 5): 4 * 3,
    ("pruning", 1): 6 * 7,
    ("pruning", 2): 4 * 3 * 3 + 3 * 2,
}


def test_every_table_of_the_papers() -> None:
    assert names() == sorted(SIZES)


@pytest.mark.parametrize(("paper", "number"), SIZES)
def test_complete(paper: str, number: int) -> None:
    table = load_table(paper, number)
    assert len({(cell.row, cell.column) for cell in table.cells}) == len(table.cells) == SIZES[paper, number]
    assert f"Table {number}" in table.source
    assert {cell.unit for cell in table.cells} <= {"%", "s", "1e4", "1e6", "1e8"}
    # What the paper does not have says so.
    assert all(cell.paper is not None or cell.notes for cell in table.cells)
    if paper == "dynamic":
        assert all(cell.recipe for cell in table.cells)


@pytest.mark.parametrize(
    ("paper", "number", "row", "column", "want"),
    [
        ("dynamic", 1, "0.25x", "S-NN", 79.5),
        ("dynamic", 1, "0.75x", "8b", 89.8),
        ("dynamic", 2, "0.5x", "Ours-U", 72.4),
        ("dynamic", 3, "Ours-M 1", "Dynamic", 80.7),
        ("dynamic", 3, "Ours-S 3", "FLOPS", 20.07),
        ("dynamic", 4, "Ours-M 4", "Parameters", 12.2),
        ("dynamic", 5, "0.25x", "ResNet32", 82.9),
        ("pruning", 1, "irregular", "SST-2", 89.3),
        ("pruning", 1, "whole block", "STS-B", 85.3),
        ("pruning", 2, "LeNet-5 M1", "Accuracy", 98.94),
        ("pruning", 2, "HAR-Net M3", "Accuracy", 87.21),
        ("pruning", 2, "SqNxt-23 M2", "Sparsity", 54.3),
        ("pruning", 2, "OKG-Net M3", "Latency", 1.62),
    ],
)
def test_numbers_of_the_papers(paper: str, number: int, row: str, column: str, want: float) -> None:
    (cell,) = (c for c in load_table(paper, number).cells if (c.row, c.column) == (row, column))
    assert cell.paper == want


def test_what_is_wrong_with_table_2_is_said_where_it_stands() -> None:
    table = load_table("pruning", 2)
    for words in (
        "third equation",
        "leaves retraining out",
        "compare latencies within a row only",
        "sparsest",
    ):
        assert words in table.note
    notes = {(cell.row, cell.column): " ".join(cell.notes) for cell in table.cells}
    assert "the text says 20.093 % for M2 and 8.47 %" in notes["LeNet-5 M2", "Sparsity"]
    assert "top-5 (inferred)" in notes["SqNxt-23 M1", "Accuracy"]
    assert "cannot come from the device" in notes["SqNxt-23 M3", "Latency"]
    assert '"the same trend as HAR-Net" is false' in notes["OKG-Net M2", "Accuracy"]
    assert "falls as weights come back" in notes["HAR-Net M3", "Accuracy"]
    # the fits that the notes state
    for row, fixed, slope, error in (("LeNet-5", 0.698, 1.012, 2e-3), ("HAR-Net", -0.017, 0.893, 3e-3),
                                     ("OKG-Net", 0.595, 1.513, 0.056)):  # fmt: skip
        cells = {(cell.row, cell.column): cell.paper for cell in table.cells}
        for model in ("M1", "M2", "M3"):
            kept = 1 - cells[f"{row} {model}", "Sparsity"] / 100
            assert cells[f"{row} {model}", "Latency"] == pytest.approx(fixed + slope * kept, abs=error)


def test_cells_name_recipes_that_exist() -> None:
    recipes = {recipe.__name__ for recipe in RECIPES}
    for path in (HERE / "expected").glob("*.json"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell.get("recipe", "digits") in recipes
            assert ("recipe" in cell) == ("subnet" in cell) == ("quantity" in cell)


def result(seed: int, accuracy: float, **more: object) -> dict[str, object]:
    subnet = {"name": "0.25", "parameters": 17_700, "macs": 2_674_000, "accuracy": accuracy}
    run = {"recipe": "resnet20_cifar10_snn", "seed": seed, "commit": "abc", "hardware": "a machine"}
    return {**run, "subnets": [subnet], **more}


def test_ours_is_the_mean_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.79, 0.80, 0.82)):
        (tmp_path / f"run{seed}").mkdir()
        (tmp_path / f"run{seed}" / "result.json").write_text(json.dumps(result(seed, accuracy)))
    (tmp_path / "smoke.json").write_text(json.dumps(result(9, 0.1, smoke=True)))
    (tmp_path / "other.json").write_text("[1, 2]")
    cells = {(c.row, c.column): c for c in load_table("dynamic", 1, [tmp_path]).cells}
    ours = cells["0.25x", "S-NN"]
    assert (ours.ours, ours.seeds, ours.spread, ours.notes) == (
        80.33,
        3,
        3.0,
        ("ours: mean of 3 seeds, ± half their range",),
    )
    assert (ours.commit, ours.hardware) == ("abc", "a machine")
    assert ours.recipe == "resnet20_cifar10_snn"
    unmeasured = cells["0.25x", "FP"]
    assert (unmeasured.ours, unmeasured.seeds, unmeasured.spread, unmeasured.commit) == (None, 0, None, None)


def test_one_seed_has_no_spread_and_counts_have_the_papers_unit(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result(0, 0.79)))
    cells = {(c.row, c.column): c for c in load_table("dynamic", 3, [tmp_path]).cells}
    assert cells["S-NN 1", "Dynamic"].spread is None
    assert cells["S-NN 1", "Parameters"].ours == pytest.approx(1.77, abs=1e-9)
    assert cells["S-NN 1", "FLOPS"].ours == pytest.approx(2.67)


def test_missing_are_the_runs_without_all_that_is_shown(tmp_path: Path) -> None:
    needs = load_table("dynamic", 1, [tmp_path]).needs
    recipes = [
        "resnet20_cifar10_snn",
        "resnet20_cifar10_distill20",
        "resnet20_cifar10_16b",
        "resnet20_cifar10_8b",
    ]
    assert list(needs) == recipes
    every = {(name, "accuracy") for name in ("0.25", "0.5", "0.75", "1.0")}
    assert all(needed == every for needed in needs.values())
    assert missing(needs, [tmp_path]) == [(name, 0) for name in recipes]
    # One subnet of four, in two files: not yet; a smoke run never is.
    (tmp_path / "a.json").write_text(json.dumps(result(1, 0.8)))
    (tmp_path / "smoke.json").write_text(json.dumps(all_four(0, smoke=True)))
    assert ("resnet20_cifar10_snn", 1) in missing(needs, [tmp_path], (0, 1))
    (tmp_path / "b.json").write_text(json.dumps(all_four(1)))
    assert missing(needs, [tmp_path], (0, 1)) == [
        (n, s) for s in (0, 1) for n in recipes if (n, s) != (recipes[0], 1)
    ]
    assert missing({"resnet20_cifar10_snn": ()}, [tmp_path], (0, 1)) == [("resnet20_cifar10_snn", 0)]


def test_short_runs_are_marked_and_missing_until_a_full_one_takes_their_place(tmp_path: Path) -> None:
    needs = {"resnet20_cifar10_snn": {("0.25", "accuracy")}}
    for name, accuracy, epochs in (("a", 0.7, 20), ("b", 0.6, 10)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(0, accuracy, max_epochs=epochs)))
    cell = next(
        c for c in load_table("dynamic", 1, [tmp_path]).cells if (c.row, c.column) == ("0.25x", "S-NN")
    )
    assert (cell.ours, cell.notes) == (70, ("ours: no training longer than 20 epochs, no sampling than 60",))
    assert (
        missing(needs, [tmp_path])
        == missing(needs, [tmp_path], max_epochs=21)
        == [("resnet20_cifar10_snn", 0)]
    )
    assert missing(needs, [tmp_path], max_epochs=20) == []
    (tmp_path / "0.json").write_text(json.dumps(result(0, 0.8, max_epochs=None)))
    cell = next(
        c for c in load_table("dynamic", 1, [tmp_path]).cells if (c.row, c.column) == ("0.25x", "S-NN")
    )
    assert (cell.ours, cell.notes) == (80, ())
    assert missing(needs, [tmp_path]) == []


def test_a_mean_is_over_trainings_of_one_length(tmp_path: Path) -> None:
    for seed, accuracy, epochs in ((0, 0.4, 2), (1, 0.4, 2), (0, 0.9, None)):
        path = tmp_path / f"{seed}-{epochs}.json"
        path.write_text(json.dumps(result(seed, accuracy, max_epochs=epochs)))
    cell = next(
        c for c in load_table("dynamic", 1, [tmp_path]).cells if (c.row, c.column) == ("0.25x", "S-NN")
    )
    assert (cell.ours, cell.seeds, cell.notes) == (90, 1, ())
    assert [r["subnets"][0]["accuracy"] for r in longest("resnet20_cifar10_snn", [tmp_path])] == [0.9]
    for family, seconds in (
        ("multi_path", {None: 300.0, 20: 90.0}),
        ("single_path", {None: 100.0, 20: 60.0}),
    ):
        for epochs, each in seconds.items():
            record = {"task": "t", "family": family, "seed": 0, "seconds": each, "max_epochs": epochs}
            (tmp_path / f"subnets-{family}-{epochs}.json").write_text(json.dumps(record))
    assert sampling_times([tmp_path])["t"].startswith("multi-path sampling took 300 s, 3.00 times")
    (tmp_path / "subnets-single_path-None.json").unlink()
    assert sampling_times([tmp_path])["t"].startswith("multi-path sampling took 90 s, 1.50 times")


def all_four(seed: int, **more: object) -> dict[str, object]:
    subnets = [{"name": name, "macs": 1, "accuracy": 0.8} for name in ("0.25", "0.5", "0.75", "1.0")]
    return {**result(seed, 0.8, **more), "subnets": subnets}


def test_sampling_times_are_compared_on_seeds_that_both_have(tmp_path: Path) -> None:
    for family, seed, seconds in (
        ("multi_path", 0, 100.0),
        ("multi_path", 1, 900.0),
        ("single_path", 0, 50.0),
    ):
        record = {"task": "t", "family": family, "seed": seed, "seconds": seconds}
        (tmp_path / f"subnets-{family}-{seed}.json").write_text(json.dumps(record))
    assert sampling_times([tmp_path])["t"].startswith("multi-path sampling took 100 s, 2.00 times")


def test_the_note_tells_what_both_kinds_of_sampling_took(tmp_path: Path) -> None:
    assert sampling_times([tmp_path]) == {}
    for name, seconds in (("multi_path", (300.0, 500.0)), ("single_path", (100.0,)), ("nine", (9.0,))):
        for seed, each in enumerate(seconds):
            record = {
                "task": "resnet20_cifar10",
                "family": name,
                "seed": seed,
                "seconds": each,
                "smoke": False,
            }
            (tmp_path / str(seed)).mkdir(exist_ok=True)
            (tmp_path / str(seed) / f"subnets-{name}.json").write_text(json.dumps(record))
    smoke = {"task": "resnet20_cifar10", "family": "single_path", "seed": 0, "seconds": 1.0, "smoke": True}
    (tmp_path / "subnets-single_path.json").write_text(json.dumps(smoke))
    (note,) = sampling_times([tmp_path]).values()
    assert note == (
        "multi-path sampling took 300 s, 3.00 times as long as single-path (100 s); the paper says "
        "about 2.75 times"
    )
    assert note in load_table("dynamic", 3, [tmp_path]).note
    assert note not in load_table("dynamic", 4, [tmp_path]).note


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got dynamic 7; want one of: dynamic 1, "):
        load_table("dynamic", 7)
    with pytest.raises(ValueError, match="no such directory"):
        load_table("dynamic", 1, [tmp_path / "none"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: not JSON"):
        load_table("dynamic", 1, [tmp_path])
    for wrong in (result(0, "0.9"), result(0, 0.9, max_epochs="20")):  # pyright: ignore[reportArgumentType]
        (tmp_path / "broken.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"broken\.json: not a whole result"):
            load_table("dynamic", 1, [tmp_path])


def test_kept_results_say_how_to_repeat_them() -> None:
    for path in (HERE / "results").rglob("*.json"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if path.name.startswith("subnets-"):  # what was sampled for a result, and how long it took
            assert {"task", "family", "seed", "seconds", "hardware", "subnets"} <= kept.keys()
            continue
        torchrun = r"(torchrun --nproc-per-node \d+ -m )?"
        assert re.match(rf"{torchrun}rheostat train {kept['recipe']} ", kept["command"])
        assert not kept["smoke"]
        # Of a recipe's seeds one artifact is kept; those of subnets trained alone are not, and without nesting is none.
        if kept["artifact"] is not None:
            program = read_program(path.parent / kept["artifact"])
            assert all(program.provenance[key] == kept[key] for key in ("recipe", "seed"))
            assert [info.accuracy for info in program.subnets] == [s["accuracy"] for s in kept["subnets"]]
        assert {"hardware", "epochs", "seconds", "seed", "commit", "num_test_images"} <= kept.keys()
