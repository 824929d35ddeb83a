"""Several processes, one supernet: what training does where `torch.distributed` has been started.

Whoever starts it (`torchrun` with `init_process_group`, Accelerate, Lightning Fabric) is left alone; without it there
is one process and everything here does nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return dist.get_rank() if _started() else 0


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _started() else 1


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def broadcast_(net: nn.Module) -> None:
    """Give every process the tensors of the first."""
    if num_processes() > 1:
        for tensor in (*net.parameters(), *net.buffers()):
            dist.broadcast(tensor.data, 0)


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, with one all-reduce for all of them.

    The gradients of all subnets are one summed gradient, so a training step needs one, however many subnets there are.
    One process alone does not even look at the tensors.
    """
    if num_processes() == 1 or not (tensors := list(tensors)):
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= num_processes()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def check_same(where: str, settings: dict[str, Any], device: torch.device) -> None:
    """Raise ValueError in every process where their settings differ: they would wait for each other in vain."""
    if num_processes() == 1:
        return
    digests = [hashlib.sha256(repr(value).encode()).digest()[:7] for value in settings.values()]
    least = torch.tensor([int.from_bytes(digest) for digest in digests], device=device)
    most = least.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    for (name, value), same in zip(settings.items(), (least == most).tolist(), strict=True):
        if not same:
            raise ValueError(
                f"{where}: got {name}={value} in process {rank()} and another in others; want the same in all."
            )


def check_alone(where: str) -> None:
    """Raise ValueError where several processes have been started."""
    if num_processes() > 1:
        raise ValueError(
            f"{where}: got {num_processes()} processes; want one, as it measures on its own. Run it in a program apart."
        )


def all_well(failed: bool, device: torch.device) -> bool:
    """Go on when every process is here; False in all where one of them `failed`."""
    if num_processes() == 1:
        return not failed
    failures = torch.tensor(int(failed), device=device)
    dist.all_reduce(failures)
    return not failures.item()
