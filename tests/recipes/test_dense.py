"""The dense networks that nested recipes start from, on real digits; and their training data from files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rheostat as rh
from rheostat.artifact import read_program
from rheostat_recipes.data import load
from rheostat_recipes.dense import RECIPES, har, har_dense, kws_dense, lenet5_mnist_dense
from rheostat_recipes.run import Result, Run, file_loaders

QUICK = (lenet5_mnist_dense, har_dense, kws_dense)


@pytest.mark.parametrize(
    "recipe",
    [r if r in QUICK else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES],
    ids=lambda recipe: recipe.__name__,
)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path / "out", smoke=True, seed=3))
    program = read_program(result.artifact)
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert [info.name for info in program.subnets] == ["1.0"]
    assert record["command"] == f"rheostat train {recipe.__name__} --smoke --seed 3"
    images = load("digits", shape=program.input.shape)
    x = images.normalized(images.test_images)
    with rh.Engine(result.artifact, threads=1) as engine:
        right = np.mean(engine(x).argmax(1) == images.test_labels)
    assert right == pytest.approx(program.subnets[0].accuracy, abs=2 / len(x))


def test_what_a_nested_recipe_takes_from_it(tmp_path: Path) -> None:
    """The network as an ordinary module, its data, and the same once more from the checkpoint."""
    dense = har(Run(tmp_path, smoke=True))
    x, y = next(iter(dense.test))
    model = dense.net.extract(-1).eval()
    again = har(Run(tmp_path, smoke=True, resume=True)).net.extract(-1).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert x.shape[1:] == dense.images.test_images.shape[1:]
    assert len(y) == len(x)
    assert len(dense.seconds) == 2


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """One class of red pictures and one of blue ones, of several sizes."""
    for part in ("train", "val"):
        for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (260 + 30 * number, 300), colour).save(folder / f"{number}.JPEG")
    return tmp_path


def test_files_as_training_wants_them(photographs: Path) -> None:
    images = load("imagenet", photographs)
    run = Run(photographs / "out", photographs, seed=1)
    train, test = file_loaders(images, run, batch_size=3, num_workers=0)
    batches = list(train)
    assert [x.shape for x, _ in batches] == [(3, 3, 224, 224)] * 2  # 8 pictures, whole batches only
    for x, y in batches:
        redder = x[:, 0].mean((1, 2)) > x[:, 2].mean((1, 2))
        assert (redder == (y == 0)).all()
    whole = torch.cat([x for x, _ in test])
    np.testing.assert_allclose(whole.numpy(), images.normalized(images.test_images[:]), rtol=1e-6)
    assert torch.cat([y for _, y in test]).tolist() == [0] * 4 + [1] * 4


SHARES = """
import sys
import torch.distributed as dist
from pathlib import Path
from rheostat_recipes.data import load
from rheostat_recipes.run import Run, file_loaders, processes

folder = Path(sys.argv[1])
with processes():
    images = load("imagenet", folder)
    train, test = file_loaders(images, Run(folder / "out", folder), batch_size=4, num_workers=0)
    orders = []
    for epoch in (0, 1):
        train.sampler.set_epoch(epoch)
        shares = [None, None]
        dist.all_gather_object(shares, list(train.sampler))
        assert sorted(shares[0] + shares[1]) == list(range(8)), shares
        orders.append(shares[0])
    assert orders[0] != orders[1]
    assert [len(y) for _, y in train] == [2, 2]
    assert sum(len(y) for _, y in test) == 8
"""


def test_two_processes_share_out_the_files(photographs: Path) -> None:
    script = photographs / "script.py"
    script.write_text(SHARES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, script, photographs], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class Interruptible:
    """A `DataLoader` that someone stops at the start of the second epoch."""

    def __init__(self, loader: Any, stop: bool) -> None:
        self.loader, self.generator, self.stop = loader, loader.generator, stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        if self.stop and epoch == 1:
            raise KeyboardInterrupt


def test_training_from_files_can_be_resumed(photographs: Path) -> None:
    """Order and windows follow from the epoch: training that was stopped ends in the same bits."""
    images = load("imagenet", photographs)

    def trained(name: str, stop: bool, resume: bool) -> torch.Tensor:
        run = Run(photographs / name, photographs)
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 2))
        graph = rh.trace(model, torch.zeros(1, 3, 224, 224))
        net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
        train, _ = file_loaders(images, run, batch_size=2, num_workers=0)
        rh.fit(
            net,
            Interruptible(train, stop),
            epochs=2,
            lr=0.01,
            checkpoint=run.checkpoint(),
            resume=resume,
            progress=False,
        )
        return net.extract(-1).state_dict()["2.weight"]

    with pytest.raises(KeyboardInterrupt):
        trained("twice", stop=True, resume=False)
    once = trained("once", stop=False, resume=False)
    torch.testing.assert_close(trained("twice", stop=False, resume=True), once, rtol=0, atol=0)
