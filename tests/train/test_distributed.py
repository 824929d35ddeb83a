"""Two processes on one machine against one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import rheostat as rh

torch.set_num_threads(1)
checkpoint, stop, norm = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())  # the first process's weights are everybody's
norms = {"group": lambda n: nn.GroupNorm(4, n), "batch": nn.BatchNorm2d}[norm]
model = nn.Sequential(nn.Conv2d(1, 8, 3), norms(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norms(8), nn.ReLU(),
                      nn.Flatten(), nn.Linear(128, 10))
graph = rh.trace(model, torch.zeros(2, 1, 8, 8))
net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
pixels, labels = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 1, 8, 8) * 15.9).astype("uint8")[:256]
loader = rh.ImageLoader(images, labels[:256], 64, mean=[0.3], std=[0.38], crop=1, shuffle=True)


class Stopped(Exception):
    pass


class Stopping(rh.ImageLoader):
    def __iter__(self):
        if self._epoch >= stop:
            raise Stopped
        return super().__iter__()


loader.__class__ = Stopping
try:
    rh.fit(net, loader, epochs=3, lr=0.05, checkpoint=checkpoint, resume=True, progress=False)
except Stopped:
    pass
if norm == "batch":  # averaged statistics are the same everywhere
    mean = net[0][1].running_mean.clone()
    dist.broadcast(mean, 0)
    assert torch.equal(mean, net[0][1].running_mean)
dist.destroy_process_group()
"""


def train(checkpoint: Path, processes: int, stop: int = 99, norm: str = "group") -> None:
    script = checkpoint.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), str(checkpoint), str(stop), norm], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def worst(a: Path, b: Path) -> float:
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    return max(float((left[n].double() - right[n].double()).abs().max()) for n in left if left[n].numel())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = tmp_path_factory.mktemp("one") / "one.safetensors"
    train(checkpoint, 1)
    return checkpoint


def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    train(tmp_path / "two.safetensors", 2)
    assert worst(alone, tmp_path / "two.safetensors") < 1e-6


def test_a_checkpoint_resumes_under_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    train(tmp_path / "run.safetensors", 2, stop=2)
    assert worst(alone, tmp_path / "run.safetensors") > 1e-3  # an epoch is missing
    train(tmp_path / "run.safetensors", 1)
    assert worst(alone, tmp_path / "run.safetensors") < 1e-6


def test_batch_norm_statistics_are_those_of_all_processes(tmp_path: Path) -> None:
    train(tmp_path / "run.safetensors", 2, norm="batch")
    state = load_file(tmp_path / "run.safetensors")
    assert all(torch.isfinite(t).all() for t in state.values())


STAGES = """
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import rheostat as rh

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)  # the levels are found from the weights, and want to be the same everywhere
model = nn.Sequential(nn.Conv2d(1, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 10))
graph = rh.trace(model, torch.zeros(2, 1, 8, 8))
net = rh.Supernet(graph, levels=rh.levels(graph, (0.5, 0.25)))
pixels, labels = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 1, 8, 8) * 15.9).astype("uint8")[:280]
loader = rh.ImageLoader(images, labels[:280], 140, mean=[0.3], std=[0.38], shuffle=True)
net.freeze_except_(0)
rh.fit(net, loader, epochs=2, subnets=[0], progress=False)
state = {name: tensor.clone() for name, tensor in net[0].state_dict().items()}
net.freeze_except_(1)
rh.fit(net, loader, epochs=1, subnets=[1], progress=False)
moved = [name for name, tensor in net[0].state_dict().items() if not torch.equal(tensor, state[name])]
assert not moved, moved
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_mean_over_seven_processes_leaves_frozen_statistics_alone(tmp_path: Path) -> None:
    """Seven times a number, divided by seven, is not always the number."""
    script = tmp_path / "stages.py"
    script.write_text(STAGES)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=7",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


TOGETHER = """
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rheostat as rh

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, processes, folder = dist.get_rank(), dist.get_world_size(), Path(sys.argv[1])
torch.manual_seed(rank)  # the first process's weights are everybody's
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
graph = rh.trace(model, torch.zeros(2, 1, 8, 8))
pixels, labels = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 1, 8, 8) * 15.9).astype("uint8")[:256]
loader = rh.ImageLoader(images, labels[:256], 64, mean=[0.3], std=[0.38], shuffle=True)

# sampling: the same subnets everywhere, and those of one process
lasso = rh.Lasso(lr=0.02, epochs=8, shrink=4)
sampled = rh.single_path(graph, loader, lasso, macs=(10_000, 7_000), checkpoint=folder / "lasso", progress=False)
(folder / f"{rank}-of-{processes}").write_text(repr([asdict(subnet) for subnet in sampled]))
net = rh.Supernet(graph, sampled)

# validation: what all processes have read
x, y = torch.tensor(images[:201]) / 255.0, torch.tensor(labels[:201])
data = TensorDataset(x, y)
shares = DataLoader(data, 50, sampler=DistributedSampler(data, shuffle=False, drop_last=False))
for validation in (shares, DataLoader(data, 50)):
    score = rh.fit(net, loader, epochs=1, lr=0.01, validation=validation, progress=False)[-1].validation
    everybody = [None] * processes
    dist.all_gather_object(everybody, score)
    assert everybody == [score] * processes, everybody
    whole = rh.evaluate(net, [(x, y)])
    # The sampler gives one image twice, so that all shares are of one length.
    assert all(abs(whole[name] - score[name]) < 1.01 / 202 for name in whole), (whole, score)


def refused(message, call):
    try:
        call()
    except (ValueError, OSError) as error:
        assert re.search(message, str(error)), error
    else:
        raise AssertionError(message)


if processes == 2:
    def train(net, loader, **settings):
        return lambda: rh.fit(net, loader, epochs=1, progress=False, **settings)

    refused("got steps=[45] in process [01] and another", train(net, [(x, y)] * (4 + rank)))
    refused("got seed=[01] in process", train(net, loader, seed=rank))
    other = rh.trace(nn.Linear(8, 8), torch.zeros(2, 8))
    generator = torch.Generator().manual_seed(rank)
    scores = {"weight": torch.rand(8, 8, generator=generator)}
    pruned = rh.Supernet(other, levels=rh.levels(other, (0.5, 0.25), scores=scores))
    refused("got levels=", train(pruned, [(torch.randn(4, 8), torch.arange(4))]))
    whole = rh.trace(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), torch.zeros(2, 64))
    frozen = rh.Supernet(whole, rh.uniform(whole, (0.5, 1.0)))  # of each process's own weights
    frozen.freeze_except_(0)
    rh.fit(frozen, [(x.flatten(1), y)], epochs=1, subnets=[0], progress=False)
    everybody = [None] * processes
    dist.all_gather_object(everybody, [parameter.tolist() for parameter in frozen.parameters()])
    assert everybody[0] == everybody[1]
    own = folder / str(rank)
    own.mkdir()
    rh.fit(net, loader, epochs=1, progress=False, checkpoint=own / "c")
    refused("got epochs already trained=[01] in process", train(net, loader, checkpoint=own / "c", resume=True))
    why = "could not write it" if rank else "No such file"
    refused(why, train(net, loader, checkpoint=folder / "nowhere" / "c"))
    def prune(lasso, **settings):
        return lambda: rh.single_path(graph, loader, lasso, macs=(10_000, 7_000), progress=False, **settings)

    refused("Lasso: got strength=[01].0 in process", prune(rh.Lasso(strength=float(rank))))
    if rank == 0:
        shutil.copy(folder / "lasso", own / "lasso")
    refused("got epochs already trained=[0-8] in", prune(lasso, checkpoint=own / "lasso", resume=True))

    def sparsify(**settings):
        return rh.admm(graph, loader, 0.5, rho=(0.1,), updates=1, epochs=1, progress=False, **settings)

    sparsify(checkpoint=own / "admm")  # the first process writes
    refused("got updates already made=[01] in", lambda: sparsify(checkpoint=own / "admm", resume=True))
    refused("finetune: got 2 processes; want one", lambda: rh.finetune(net, loader))
    refused("slim: got 2 processes; want one", lambda: rh.slim(net, loader, (10_000,)))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sampling_and_validation_do_not_depend_on_the_processes_which_must_agree(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    for processes in (1, 2):
        folder = tmp_path / f"of{processes}"
        folder.mkdir()
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, str(script), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    (alone,) = (tmp_path / "of1").glob("0-of-1")
    first, second = sorted((tmp_path / "of2").glob("?-of-2"))
    assert first.read_text() == second.read_text() == alone.read_text()


# ---- docs/distributed.md ----

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
TORCHRUN, ACCELERATE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# Writes down the gradient of the first step: an optimizer sees it as `fit` sums and averages it.
RECORDING = """
class Recording(torch.optim.SGD):
    def step(self, closure=None):
        import pathlib
        from safetensors.torch import save_file
        if torch.distributed.get_rank() == 0 and not pathlib.Path("gradient.safetensors").exists():
            parameters = dict(net.named_parameters())
            save_file({name: p.grad.contiguous() for name, p in parameters.items()}, "gradient.safetensors")
        return super().step(closure)


rh.fit(net, loader, optimizer=lambda groups: Recording(groups, lr=0.05), """


def gradient(folder: Path, script: str, processes: int) -> Path:
    """Run a page's script in `folder`; the file of the first step's gradients."""
    folder.mkdir()
    code = script.replace("rh.fit(net, loader, ", RECORDING)
    assert code != script
    (folder / "train.py").write_text("import torch\ntorch.set_num_threads(1)\n" + code, encoding="utf-8")
    # One process alone is told what torchrun would tell it, which saves starting torchrun.
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    torchrun = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "train.py"], cwd=folder, env=os.environ | (alone if processes == 1 else {}),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "digits.safetensors").stat().st_size > 1000
    return folder / "gradient.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["torchrun", "accelerate"])
def test_gradients_of_the_documented_script_do_not_depend_on_the_processes(
    starter: str, tmp_path: Path
) -> None:
    script = TORCHRUN
    if starter == "accelerate":
        pytest.importorskip("accelerate")
        start, device = TORCHRUN.index("torch.distributed.init"), TORCHRUN.index("images, labels")
        script = (
            TORCHRUN[:start]
            + ACCELERATE.replace("Accelerator()", "Accelerator(cpu=True)")
            + TORCHRUN[device:]
        )
    one, two = (gradient(tmp_path / str(n), script, n) for n in (1, 2))
    largest = max(float(tensor.abs().max()) for tensor in load_file(one).values())
    assert largest > 0.01
    assert worst(one, two) < 1e-6
    assert worst(tmp_path / "1" / "digits.safetensors", tmp_path / "2" / "digits.safetensors") < 1e-4
