"""Every recipe, on real digits, from the first line to the artifact: `--smoke` is the recipe itself, only shorter."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import rheostat as rh
from rheostat import artifact
from rheostat.artifact import read_program
from rheostat_recipes import uniform
from rheostat_recipes.data import load
from rheostat_recipes.run import Result, Run
from rheostat_recipes.task import RESNET18
from rheostat_recipes.uniform import (
    NINE_WIDTHS,
    RECIPES,
    WIDTHS,
    digits,
    lenet5_mnist,
    resnet20_cifar10_8b,
    resnet20_cifar10_distill,
    resnet20_cifar10_distill20,
    resnet20_cifar10_snn,
    resnet50_imagenet_distill,
)

QUICK = (digits, lenet5_mnist, resnet20_cifar10_snn, resnet20_cifar10_distill)
ROUNDED = (uniform.resnet20_cifar10_16b, resnet20_cifar10_8b)
SLOW = [recipe for recipe in RECIPES if recipe not in (*QUICK, *ROUNDED)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SLOW, ids=lambda recipe: recipe.__name__)
def test_smoke_of_the_others(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path, smoke=True))
    assert result.artifact is not None
    widths = NINE_WIDTHS if "nine" in recipe.__name__ else WIDTHS
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob(f"{recipe.__name__}-seed0.json"))]
    names = [subnet["name"] for record in found for subnet in record["subnets"]]
    assert names == [str(width) for width in widths]
    assert len(found) == (4 if recipe.__name__.endswith("_individual") else 1)
    assert all(subnet["accuracy"] is not None for record in found for subnet in record["subnets"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ROUNDED, ids=lambda recipe: recipe.__name__)
def test_rounding_trains_what_it_rounds_once(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    """And fine-tunes where rounding took more than 0.3 points off the accuracies that the float file claims."""
    run = Run(tmp_path / "own", smoke=True, shared=tmp_path)
    result = recipe(run)
    floats = tmp_path / "resnet20_cifar10_distill20-0" / "resnet20_cifar10_distill20.safetensors"
    record = json.loads(result.record.read_text())
    assert result.artifact is not None
    program = read_program(result.artifact)
    assert program.quant is not None
    assert program.quant.bits_weights == (8 if "8b" in recipe.__name__ else 16)
    assert [s["accuracy"] for s in record["subnets"]] == [info.accuracy for info in program.subnets]
    assert ("rounding lost points" in record["note"]) == bool(record["epochs"])
    # A file that claims more than it does has everything to gain.
    program, tensors = artifact.read(floats)
    boast = tuple(replace(info, accuracy=0.999) for info in program.subnets)
    artifact.write(floats, replace(program, subnets=boast), tensors)
    written = floats.stat().st_mtime_ns
    again = json.loads(recipe(replace(run, out=tmp_path / "again")).record.read_text())
    assert again["epochs"] == 2
    assert again["note"].partition("; ")[0] in ("fine-tuned", "rounded")
    assert "rounding lost points: 0.25: " in again["note"]
    assert floats.stat().st_mtime_ns == written  # not trained again


@pytest.mark.parametrize("recipe", QUICK, ids=lambda recipe: recipe.__name__)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path / "out", smoke=True, seed=3))
    program = read_program(result.artifact)
    assert [info.name for info in program.subnets] == [str(width) for width in WIDTHS]
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record["recipe"] == recipe.__name__
    assert record["command"] == f"rheostat train {recipe.__name__} --smoke --seed 3"
    assert (record["data"], record["smoke"], record["epochs"], record["seed"]) == ("digits", True, 2, 3)
    assert record["seconds"] > 0
    assert [s["accuracy"] for s in record["subnets"]] == [info.accuracy for info in program.subnets]
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()
    # The accuracies of the training are those of the file in the engine.
    images = load("digits", shape=program.input.shape)
    x = images.normalized(images.test_images)
    with rh.Engine(result.artifact, threads=1) as engine:
        for info in program.subnets:
            engine.select(info.name)
            right = np.mean(engine(x).argmax(1) == images.test_labels)
            assert right == pytest.approx(info.accuracy, abs=1 / len(x) + 1e-9)


def test_torchrun_trains_a_recipe_on_two_processes(tmp_path: Path) -> None:
    """One of them writes and prints, and its accuracies are those of the engine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "rheostat", "train", "lenet5_mnist", "--smoke", "--json"]
    done = subprocess.run([*torchrun, *train], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "rheostat-runs" / "smoke" / "lenet5_mnist-0"
    record = json.loads((folder / "lenet5_mnist-seed0.json").read_text(encoding="utf-8"))
    assert record["command"] == "torchrun --nproc-per-node 2 -m rheostat train lenet5_mnist --smoke --seed 0"
    accuracies = [subnet["accuracy"] for subnet in record["subnets"]]
    assert [subnet["accuracy"] for subnet in json.loads(done.stdout)] == accuracies
    program = read_program(folder / "lenet5_mnist.safetensors")
    images = load("digits", shape=program.input.shape)
    with rh.Engine(folder / "lenet5_mnist.safetensors", threads=1) as engine:
        found = rh.accuracy(engine, images.test_batches())
    assert found == pytest.approx(accuracies, abs=1 / len(images.test_labels) + 1e-9)


def test_resume_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    first = digits(Run(tmp_path, smoke=True))
    tensors = first.artifact.read_bytes()
    again = digits(Run(tmp_path, smoke=True, resume=True))
    assert again.artifact.read_bytes() == tensors


def test_a_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    one, two, three = (
        digits(Run(tmp_path / name, smoke=True, seed=seed)).artifact.read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == two
    assert one != three


def test_published_weights_need_a_folder(tmp_path: Path) -> None:
    for recipe in (resnet20_cifar10_distill20, resnet20_cifar10_distill, resnet50_imagenet_distill):
        with pytest.raises(
            ValueError, match=f"{recipe.__name__}: got no --data DIR; want one with the publi"
        ):
            recipe(Run(tmp_path))
    with pytest.raises(ValueError, match=r"resnet50-0676ba61\.pth: no such file"):
        resnet50_imagenet_distill(Run(tmp_path, data_dir=tmp_path))
    with pytest.raises(ValueError, match=r"resnet20-12fca82f\.th: no such file"):
        resnet20_cifar10_distill(Run(tmp_path, data_dir=tmp_path))


def test_imagenet_comes_from_files_and_the_rest_from_memory(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, name in ((part, name) for part in ("train", "val") for name in ("n01", "n02")):
        folder = tmp_path / "imagenet" / part / name
        folder.mkdir(parents=True)
        image.new("RGB", (260, 300), (200, 10, 10)).save(folder / "0.JPEG")
    images, train, test = replace(RESNET18, batch_size=2).loaders(Run(tmp_path / "out", tmp_path))
    assert isinstance(train, DataLoader) and isinstance(test, DataLoader)
    assert (images.name, len(train), len(test)) == ("imagenet", 1, 1)
    assert images.test_images.shape[1:] == RESNET18.shape == tuple(RESNET18.example(Run(tmp_path)).shape[1:])
    _, train, _ = RESNET18.loaders(Run(tmp_path / "out", smoke=True))
    assert isinstance(train, rh.ImageLoader)
    assert next(iter(train))[0].shape[1:] == RESNET18.smoke_shape


FAULTS = """
import resource, sys, torch
from rheostat_recipes.run import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
for turn in range(12):
    if turn == 2:  # the first turns need pages in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 20) for _ in range(8)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_freed_memory_is_kept() -> None:
    """Counted by the kernel: ten turns of 32 MB are 80,000 pages if all is given back, as it is from this start."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    faults = []
    for flag in ([], ["keep"]):
        command = [sys.executable, "-c", FAULTS, *flag]
        ran = subprocess.run(command, capture_output=True, check=True, env=environment)
        faults.append(int(ran.stdout))
    assert faults[1] < 0.05 * faults[0]
