"""Several processes, one supernet: what `fit` does where `torch.distributed` has been started.

Whoever starts it (`torchrun` with `init_process_group`, Accelerate, Lightning Fabric) is left alone; without it there
is one process and everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def wait() -> None:
    """Go on when every process is here."""
    if num_processes() > 1:
        dist.barrier()
