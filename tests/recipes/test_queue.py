"""The queue: what it runs and skips, what a kill leaves of it, and that it hides no failure."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rheostat_recipes.queue import RECIPES, run_all
from rheostat_recipes.run import Result, Run
from rheostat_recipes.tables import load_results, missing

SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
import rheostat as rh
from rheostat_recipes.queue import run_all
from rheostat_recipes.run import Run, finish, loaders
from rheostat_recipes.tables import missing

out, kill = Path(sys.argv[1]), sys.argv[2] == "kill"
torch.set_num_threads(1)


class Killing(rh.ImageLoader):
    def __iter__(self):
        if kill and self._epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__iter__()


def trained(recipe, run, killing=False):
    print("running", recipe, flush=True)
    images = run.images("digits", (1, 8, 8))
    train, test = loaders(images, run, batch_size=128)
    if killing:
        train.__class__ = Killing
    torch.manual_seed(run.seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    epochs = rh.fit(net, train, epochs=2, validation=test, checkpoint=run.checkpoint(), resume=run.resume)
    return finish(recipe, run, net, images, [epoch.seconds for epoch in epochs])


def one(run):
    return trained("one", run)

def two(run):
    return trained("two", run, killing=True)

def three(run):
    raise ValueError("three: got no data; want some")

def four(run):
    return trained("four", run)

recipes = (one, two, three, four)
needs = {recipe.__name__: {("0.5", "accuracy"), ("1.0", "accuracy")} for recipe in recipes}
for failure in run_all(missing(needs, [out]), out, None, recipes=recipes):
    print("FAILED", failure)
"""


def run(out: Path, word: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), word],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_killed_queue_goes_on_where_it_stopped(tmp_path: Path) -> None:
    killed = run(tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [r["recipe"] for r in load_results([tmp_path])] == ["one"]
    again = run(tmp_path, "go on")
    assert again.returncode == 0, again.stderr
    lines = again.stdout.splitlines()
    assert [line for line in lines if line.startswith("running")] == ["running two", "running four"]
    assert "1 of 3: two, seed 0" in lines
    # The epoch that was finished is not trained again.
    assert next(line for line in lines if line.startswith("epoch ")).startswith("epoch 2/2")
    # What failed is said where it happened, and at the end; what comes after it runs.
    assert "failed: three, seed 0: three: got no data; want some" in lines
    assert lines[-1] == "FAILED three, seed 0: three: got no data; want some"
    assert sorted(r["recipe"] for r in load_results([tmp_path])) == ["four", "one", "two"]
    assert all(r["epochs"] == 2 for r in load_results([tmp_path]))
    assert missing({"one": (), "three": ()}, [tmp_path]) == [("three", 0)]


def test_runs_share_a_folder_and_have_their_own() -> None:
    seen = []

    def recipe(run: Run) -> Result:
        seen.append((run.out, run.part("background").out, run.resume, run.seed))
        return Result(None, run.out)

    assert run_all([("recipe", 0), ("recipe", 3)], Path("runs"), None, recipes=(recipe,)) == []
    assert seen == [
        (Path("runs/recipe-0"), Path("runs/background-0"), True, 0),
        (Path("runs/recipe-3"), Path("runs/background-3"), True, 3),
    ]


def test_runs_of_another_length_keep_apart() -> None:
    seen = []

    def recipe(run: Run) -> Result:
        seen.append((run.out, run.part("background").out, run.epochs(60), run.epochs(2)))
        return Result(None, run.out)

    assert run_all([("recipe", 0)], Path("runs"), None, recipes=(recipe,), max_epochs=5) == []
    assert seen == [(Path("runs/epochs5/recipe-0"), Path("runs/epochs5/background-0"), 5, 2)]
    assert [Run(Path("runs"), smoke=True, max_epochs=n).epochs(60) for n in (None, 1, 5)] == [2, 1, 2]


def test_a_bug_stops_the_queue() -> None:
    def recipe(run: Run) -> Result:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run_all([("recipe", 0)], Path("runs"), None, recipes=(recipe,))


def test_every_recipe_says_command_expectation_and_time() -> None:
    assert len({recipe.__name__ for recipe in RECIPES}) == len(RECIPES)
    for recipe in RECIPES:
        text = " ".join((recipe.__doc__ or "").split())
        for word in (f"Command: `rheostat train {recipe.__name__}", "Expected: ", "Time: "):
            assert word in text, (recipe.__name__, word)
