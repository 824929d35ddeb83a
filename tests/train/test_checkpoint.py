from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rheostat.spec import ArtifactError
from rheostat.train.checkpoint import clean, read, restore_, write

Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


def trained(make: Make | None = None, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    make = make or (lambda params: torch.optim.SGD(params, 0.1, 0.9))
    optimizer = make(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    return net, optimizer


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, 0.1, 0.9, nesterov=True),
    "plain sgd": lambda params: torch.optim.SGD(params, 0.1),
    "adamw": lambda params: torch.optim.AdamW(params, 0.01, amsgrad=True),
    "rprop": lambda params: torch.optim.Rprop(params, 0.01),
    "asgd": lambda params: torch.optim.ASGD(params, 0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_a_restore_training_goes_on_to_the_same_bits(tmp_path: Path, make: Make) -> None:
    net, optimizer = trained(make)
    write(tmp_path / "c", net, optimizer, {"epoch": 3, "history": [0.5, 0.25]})
    other, other_optimizer = trained(make, seed=1)
    checkpoint = read(tmp_path / "c")
    restore_(other, other_optimizer, checkpoint)
    assert checkpoint.state == {"epoch": 3, "history": [0.5, 0.25]}
    for _ in range(3):
        x = torch.randn(5, 4)
        for module, its_optimizer in ((net, optimizer), (other, other_optimizer)):
            its_optimizer.zero_grad()
            module(x).square().mean().backward()
            its_optimizer.step()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_any_safetensors_reader_finds_the_tensors(tmp_path: Path) -> None:
    net, optimizer = trained()
    write(tmp_path / "c", net, optimizer, {})
    tensors = load_file(tmp_path / "c")
    assert torch.equal(tensors["net.0.weight"], net.state_dict()["0.weight"])
    momentum = optimizer.state[net.get_parameter("3.bias")]["momentum_buffer"]
    assert torch.equal(tensors["optimizer.3.bias.momentum_buffer"], momentum)


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    write(tmp_path / "c", net, optimizer, {})
    want = first.weight.detach().clone()
    with torch.no_grad():
        first.weight.zero_()
    restore_(net, optimizer, read(tmp_path / "c"))
    assert torch.equal(second.weight, want)


@pytest.mark.skipif(os.name != "posix", reason="file size limits")
def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path: Path) -> None:
    net, optimizer = trained()
    write(tmp_path / "c", net, optimizer, {"epoch": 1})
    old = (tmp_path / "c").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot be written: File too large.*previous checkpoint is untouched"
        ):
            write(tmp_path / "c", net, optimizer, {"epoch": 2})
        with pytest.raises(OSError, match="no earlier one"):
            write(tmp_path / "new", net, optimizer, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "c").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    write(tmp_path / "c", net, optimizer, {"epoch": 2})
    assert read(tmp_path / "c").state == {"epoch": 2}


@pytest.mark.parametrize("where", ["missing/c", "file/c"])
def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        write(tmp_path / where, *trained(), {})


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_an_os_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot be written"):
        write(tmp_path / "c", *trained(), {})


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "c", *trained(), {})
    (tmp_path / ".c.tmp").write_bytes(b"half of a checkpoint")
    clean(tmp_path / "c")
    clean(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[:-1])
    elif kind == "longer":
        path.write_bytes(data + b"\0")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(random.Random(0).randbytes(1000))
    elif kind == "another file":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "no content":
        save_file({"net.x": torch.zeros(3)}, path, {"format": "rheostat-checkpoint 2"})
    elif kind == "not JSON":
        save_file({"net.x": torch.zeros(3)}, path, {"format": "rheostat-checkpoint 2", "content": "{"})


@pytest.mark.parametrize(
    "kind", ["truncated", "longer", "empty", "noise", "another file", "no content", "not JSON"]
)
def test_a_damaged_file_is_an_artifact_error(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "c", *trained(), {})
    damage(tmp_path / "c", kind)
    with pytest.raises(ArtifactError, match="not readable"):
        read(tmp_path / "c")


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "c", *trained(), {})
    other = nn.Sequential(nn.Linear(4, 9))
    before = other.state_dict()["0.weight"].clone()
    with pytest.raises(ArtifactError, match=r"0\.bias: got shape \(8,\); want \(9,\).*another network"):
        restore_(other, torch.optim.SGD(other.parameters(), 0.1), read(tmp_path / "c"))
    assert torch.equal(other.state_dict()["0.weight"], before)


def test_an_optimizer_that_keeps_more_than_tensors_is_refused(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(net.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = net(torch.ones(3, 2)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(ValueError, match="LBFGS keeps a list"):
        write(tmp_path / "c", net, optimizer, {})


WRITE_FOR_EVER = """
import sys, torch
from rheostat.train.checkpoint import read, write
net = torch.nn.Linear(300, 300)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(number)
    write(sys.argv[1], net, optimizer, {"number": number})
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_instant_there_is_a_whole_checkpoint(tmp_path: Path) -> None:
    path, number, rng = tmp_path / "c", 0, random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, path, str(number)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        while not path.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        checkpoint = read(path)
        assert checkpoint.state["number"] >= number
        number = checkpoint.state["number"]
        for tensor in checkpoint.network.values():
            assert (tensor == number).all()
    clean(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]
