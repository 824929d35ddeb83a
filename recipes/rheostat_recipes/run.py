"""What every recipe shares: where a run writes, where it came from, and how its result is put down."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import rheostat as rh
from rheostat_recipes.data import Images, load
from rheostat_recipes.files import ImageFiles


@dataclass(frozen=True)
class Run:
    """One run of a recipe: the directory it writes to, the packed data it reads, and what the flags said.

    out: directory for the artifact, the result and the checkpoint; made when it does not exist.
    data_dir: data sets and published weights; None for Hugging Face `datasets`.
    smoke: a minute instead of hours: enlarged digits stand in for the data, two epochs for the training.
    shared: directory of what several recipes build on, each part in PART-SEED; None for `out`.
    max_epochs: no training takes longer, whatever the recipe says, and no sampling than three times that; the result is
        marked. None for full length.
    """

    out: Path
    data_dir: Path | None = None
    smoke: bool = False
    resume: bool = False
    seed: int = 0
    shared: Path | None = None
    max_epochs: int | None = None

    def part(self, name: str) -> Run:
        """Return the run of something that several recipes build on; whatever is there already is gone on from."""
        return replace(self, out=(self.shared or self.out) / f"{name}-{self.seed}", resume=True)

    def images(self, name: str, shape: tuple[int, int, int]) -> Images:
        """Load the data set, or in a smoke run some digits of its shape."""
        if not self.smoke:
            return load(name, self.data_dir)
        images = load("digits", shape=shape)
        return replace(images, train_images=images.train_images[:640], train_labels=images.train_labels[:640])

    def epochs(self, full: int) -> int:
        """Return the recipe's number of epochs, at most `max_epochs`, or in a smoke run two."""
        full = 2 if self.smoke else full
        return min(full, self.max_epochs or full)

    def warmup(self, full: int) -> float:
        """Return the epochs in which the learning rate rises: one, or half of a training of one."""
        return min(1, self.epochs(full) / 2)

    def device(self) -> torch.device:
        """Return the accelerator where there is one, otherwise the processor."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def checkpoint(self) -> Path:
        """Return where the checkpoint lies, in a directory that exists."""
        self.out.mkdir(parents=True, exist_ok=True)
        return self.out / "checkpoint.safetensors"


@dataclass(frozen=True)
class Result:
    """What a run left behind: the artifact, None for subnets that do not nest, and the JSON beside it."""

    artifact: Path | None
    record: Path


Recipe = Callable[[Run], Result]

Loader = Iterable[tuple[Tensor, Tensor]]


def runs_dir(root: Path, smoke: bool, max_epochs: int | None) -> Path:
    """Return where in `root` such runs lie: short ones apart, so that none builds on another's parts."""
    return root / "smoke" if smoke else root if max_epochs is None else root / f"epochs{max_epochs}"


def loaders(
    images: Images,
    run: Run,
    *,
    batch_size: int,
    crop: int = 0,
    flip: bool = False,
    channels_last: bool = False,
    cycle: int | None = None,
) -> tuple[rh.ImageLoader, rh.ImageLoader]:
    """Return the training loader, shuffled and augmented, and the test loader."""
    assert isinstance(images.train_images, np.ndarray) and isinstance(images.test_images, np.ndarray)
    train = rh.ImageLoader(
        images.train_images,
        images.train_labels,
        min(batch_size, len(images.train_labels)),
        mean=images.mean,
        std=images.std,
        crop=crop,
        flip=flip,
        shuffle=True,
        seed=run.seed,
        device=run.device(),
        channels_last=channels_last,
        cycle=cycle,
    )
    test = rh.ImageLoader(
        images.test_images,
        images.test_labels,
        500,
        mean=images.mean,
        std=images.std,
        device=run.device(),
        channels_last=channels_last,
    )
    return train, test


def file_loaders(images: Images, run: Run, *, batch_size: int, num_workers: int = 8) -> tuple[Loader, Loader]:
    """Return the same for images in files, which worker processes decode: random windows, mirrored or not, to train on.

    The order depends on the epoch and `run.seed`, so that training can be resumed. Several processes share out each
    batch of the training, and each has the whole test.
    """
    shares = num_processes()
    workers = {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": run.device().type == "cuda",
    }
    photographs = _Photographs(images, training=True)
    sampler = DistributedSampler(photographs, seed=run.seed, drop_last=True) if shares > 1 else None
    train = DataLoader(
        photographs,
        batch_size // shares,
        shuffle=sampler is None,
        sampler=sampler,
        drop_last=True,
        generator=torch.Generator().manual_seed(run.seed),
        **workers,
    )
    return train, DataLoader(_Photographs(images, training=False), batch_size, **workers)


class _Photographs(Dataset[tuple[Tensor, int]]):
    """Images of files, one by one, as a network takes them."""

    def __init__(self, images: Images, training: bool) -> None:
        self.images, self.training = images, training
        self.files = images.train_images if training else images.test_images
        self.labels = images.train_labels if training else images.test_labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.training:
            assert isinstance(self.files, ImageFiles)
            pixels = self.files.window(index, torch.rand(5).tolist())[None]
        else:
            pixels = self.files[index : index + 1]
        return torch.from_numpy(self.images.normalized(pixels)[0]), int(self.labels[index])


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the others where `torchrun` started several: they train together, and the first writes."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes: the first of several, or the only one."""
    return num_processes() == 1 or dist.get_rank() == 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread: batches of small images wait longer for a second one than it saves."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def measure(net: rh.Supernet, test: Loader) -> None:
    """Record the accuracy of every subnet."""
    found = rh.evaluate(net, test)
    assert isinstance(found, dict)
    for name, accuracy in found.items():
        net.record(name, accuracy=accuracy)


def finish(recipe: str, run: Run, net: rh.Supernet, images: Images, seconds: Sequence[float]) -> Result:
    """Write the artifact and the result of a trained supernet whose accuracies are recorded; `seconds` per epoch."""
    artifact = run.out / f"{recipe}.safetensors" if net.nested else None
    run.out.mkdir(parents=True, exist_ok=True)
    net.cpu()
    if artifact is not None and is_first():
        rh.save(net, artifact, provenance=provenance(recipe, run, images))
    sparsity = [_sparsity(net, k) for k in range(len(net))] if net.levels else None
    infos = rh.cost(artifact) if artifact is not None and is_first() else net.infos
    return put_down(recipe, run, infos, images, len(seconds), sum(seconds), artifact, sparsity=sparsity)


def provenance(recipe: str, run: Run, images: Images) -> dict[str, str | int]:
    """Return what an artifact says about its training."""
    return {
        "recipe": recipe,
        "command": command(recipe, run),
        "seed": run.seed,
        "commit": commit() or "unknown",
        "data": images.name,
        # What `rheostat eval` needs to make the network's input from pixels.
        "mean": " ".join(map(str, images.mean)),
        "std": " ".join(map(str, images.std)),
    }


def put_down(
    recipe: str,
    run: Run,
    infos: Sequence[rh.SubnetInfo],
    images: Images,
    epochs: int,
    seconds: float,
    artifact: Path | None,
    note: str = "",
    sparsity: Sequence[float] | None = None,
) -> Result:
    """Write the result of a run, which the tables read; `sparsity` of each subnet where weights were pruned."""
    result = {
        "recipe": recipe,
        "command": command(recipe, run),
        "seed": run.seed,
        "commit": commit(),
        "hardware": hardware(run.device()),
        "data": images.name,
        "smoke": run.smoke,
        "num_test_images": len(images.test_labels),
        "epochs": epochs,
        "max_epochs": run.max_epochs,
        "seconds": round(seconds, 1),
        "torch": str(torch.__version__),
        "artifact": artifact and artifact.name,
        "note": note,
        "subnets": [
            {
                "name": info.name,
                "parameters": info.parameters,
                "macs": info.macs,
                "size_bytes": info.size_bytes,
                "accuracy": info.accuracy,
            }
            | ({} if sparsity is None else {"sparsity": sparsity[k]})
            for k, info in enumerate(infos)
        ],
    }
    record = run.out / f"{recipe}-seed{run.seed}.json"
    write_json(record, result)
    return Result(artifact, record)


def _sparsity(net: rh.Supernet, k: int) -> float:
    """The fraction of the pruned parameters' weights that subnet `k` has not."""
    levels = net.levels.values()
    return 1 - sum(int((level <= k).sum()) for level in levels) / sum(level.numel() for level in levels)


def command(recipe: str, run: Run) -> str:
    """Return the command that repeats a run."""
    flags = [" --data DIR"] * (run.data_dir is not None) + [" --smoke"] * run.smoke
    flags += [f" --epochs {run.max_epochs}"] * (run.max_epochs is not None)
    torchrun = f"torchrun --nproc-per-node {num_processes()} -m " if num_processes() > 1 else ""
    return f"{torchrun}rheostat train {recipe}{''.join(flags)} --seed {run.seed}"


def check_length(path: Path, run: Run) -> dict[str, Any]:
    """Return the record at `path`, which `run` builds on; ValueError where a run of another length made it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for key, own in (("smoke", run.smoke), ("max_epochs", run.max_epochs)):
        if record.get(key) != own:
            raise ValueError(
                f"{path}: made with {key}={record.get(key)}; want {own}, as in this run. Take another --out"
            )
    return record


def write_json(path: Path, value: object) -> None:
    """Replace a file by `value`, whole or not at all; of several processes the first does."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees, for the rest of the process; elsewhere nothing happens.

    It gives large tensors back to the system at once, and the next step faults in new ones page by page: a twelfth of
    the time that a ResNet-20 takes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its limit
        allocator.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def commit() -> str | None:
    """Return the commit of the source that runs, with "-dirty" when it was changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def hardware(device: torch.device) -> str:
    """Name what a run trained on: the accelerator, or the processor and how many of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
