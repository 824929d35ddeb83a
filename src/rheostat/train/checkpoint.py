"""One safetensors file from which training goes on as if it had never stopped; replaced atomically, never damaged.

Tensor `net.<name>` is `net.state_dict()[name]`, `optimizer.<parameter>.<slot>` one tensor of the optimizer's state. The
metadata holds a JSON object with the caller's `state` and the optimizer's plain numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rheostat.spec import ArtifactError
from rheostat.train.distributed import all_well, rank

FORMAT = "rheostat-checkpoint 2"


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: the network's tensors, the optimizer's slots by parameter, and the caller's `state`.

    groups: the plain numbers of each of the optimizer's groups, which some count in; the learning rate is the caller's.
    """

    network: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor | float]]
    groups: list[dict[str, float]]
    state: dict[str, Any]


def write(
    path: str | os.PathLike[str], net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Replace the checkpoint at `path`: whenever the power goes, there is a whole file there, the old or the new one.

    Of several processes the first writes, and the others wait until it has. `state` is anything that JSON can hold, and
    numbers of numpy and torch. Raises OSError, with the old file in place, when the new one cannot be written;
    ValueError for an optimizer whose state is more than tensors and numbers.
    """
    failure: OSError | ValueError | None = None
    if rank() == 0:
        try:
            _write(Path(path), net, optimizer, state)
        except (OSError, ValueError) as error:
            failure = error
    well = all_well(failure is not None, next(net.parameters()).device)
    if failure is not None:
        raise failure
    if not well:
        raise OSError(f"checkpoint {path}: the first process could not write it; its own error says why")


def _write(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    numbers: dict[str, float] = {}
    for parameter, slots in _optimizer_slots(net, optimizer).items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{parameter}.{slot}"] = value
            else:
                numbers[f"optimizer.{parameter}.{slot}"] = value
    # Copied because safetensors refuses tensors that share memory, which tied weights do.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    groups = [
        {name: value for name, value in group.items() if name != "lr" and isinstance(value, int | float)}
        for group in optimizer.param_groups
    ]
    content = json.dumps({"state": state, "optimizer": numbers, "groups": groups}, default=_number)
    data = save(tensors, {"format": FORMAT, "content": content})
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        kept = "The previous checkpoint is untouched" if path.exists() else "There is no earlier one"
        with contextlib.suppress(OSError):  # for the same reason; the first error is the one to report
            clean(path)
        raise OSError(
            error.errno,
            f"checkpoint {path}: cannot be written: {error.strerror}; want {len(data)} bytes in a writable directory. "
            f"{kept}; free space or choose another path",
        ) from error


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """What a checkpoint holds, on the CPU. Raises OSError, or ArtifactError for a file that is not one of ours."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"got format {metadata.get('format')!r}; want {FORMAT!r}")
        content = json.loads(metadata["content"])
        checkpoint = Checkpoint({}, {}, list(content["groups"]), dict(content["state"]))
        for name, value in (tensors | content["optimizer"]).items():
            part, _, rest = name.partition(".")
            if part == "net":
                checkpoint.network[rest] = value
            else:
                parameter, _, slot = rest.rpartition(".")
                checkpoint.optimizer.setdefault(parameter, {})[slot] = value
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"checkpoint {path}: not readable: {error}. Delete it to start again.") from error
    return checkpoint


def restore_(net: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint back into the network and the optimizer. Raises ArtifactError when it is another network's."""
    got = {name: tuple(tensor.shape) for name, tensor in checkpoint.network.items()}
    want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    differing = sorted(name for name in got.keys() | want.keys() if got.get(name) != want.get(name))
    if differing:
        name = differing[0]
        raise ArtifactError(
            f"checkpoint: {name}: got shape {got.get(name)}; want {want.get(name)} (and {len(differing) - 1} more "
            "tensors that differ). It belongs to another network."
        )
    net.load_state_dict(checkpoint.network)
    names = _parameter_names(net)
    packed = optimizer.state_dict()
    packed["state"] = {
        index: checkpoint.optimizer[names[id(parameter)]]
        for index, parameter in enumerate(_parameters(optimizer))
        if names[id(parameter)] in checkpoint.optimizer
    }
    for group, numbers in zip(packed["param_groups"], checkpoint.groups, strict=True):
        group.update(numbers)
    optimizer.load_state_dict(packed)


def resumed(
    where: str, path: str | os.PathLike[str], resume: bool, settings: dict[str, Any]
) -> Checkpoint | None:
    """The checkpoint that a run goes on from, rid of what a killed `write` left beside it; None where there is none.

    Raises ValueError where one exists and `resume` is False, or its state's "settings" are others.
    """
    if not Path(path).exists():
        return None
    if not resume:
        raise ValueError(
            f"{where}: {path} exists; want resume=True to go on from it, or another checkpoint=."
        )
    clean(path)
    saved = read(path)
    theirs = saved.state["settings"]
    ours = json.loads(json.dumps(settings, default=_number))  # lists for tuples, as `read` gives them
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{where}: {path} was written with {name}={theirs.get(name)!s:.300}; got {name}="
                f"{ours.get(name)!s:.300}. Pass the same settings to resume, or another checkpoint= to start again."
            )
    return saved


def _number(value: Any) -> float:
    return value.item()


def clean(path: str | os.PathLike[str]) -> None:
    """Remove what a killed `write` may have left beside the checkpoint."""
    _temporary(Path(path)).unlink(missing_ok=True)


def _optimizer_slots(
    net: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor | float]]:
    names = _parameter_names(net)
    found: dict[str, dict[str, Tensor | float]] = {}
    for parameter in _parameters(optimizer):
        slots = {
            slot: value for slot, value in optimizer.state.get(parameter, {}).items() if value is not None
        }
        for slot, value in slots.items():
            if not isinstance(value, Tensor | int | float):
                raise ValueError(
                    f"checkpoint: {type(optimizer).__name__} keeps a {type(value).__name__} in {slot!r}; want tensors "
                    "and numbers only. Train without checkpoint=, or use another optimizer."
                )
        found[names[id(parameter)]] = slots
    return found


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order by which `optimizer.state_dict()` numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameter_names(net: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in net.named_parameters()}


def _temporary(path: Path) -> Path:
    # One fixed name: what a killed run left is overwritten by the next, however often it is killed.
    return path.with_name(f".{path.name}.tmp")


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable; only POSIX lets a directory be synchronised."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
