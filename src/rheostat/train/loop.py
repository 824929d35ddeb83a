"""What every training loop needs: batches in a given order, the device, the rate, the bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import torch
import torch.compiler.config
from torch import Tensor, nn

from rheostat.train.data import epoch_seed


def batches_of(
    loader: Iterable[tuple[Any, Tensor]], steps: int, seed: int, epoch: int
) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch, in an order that depends on the epoch and not on what was drawn before."""
    for source in (loader, getattr(loader, "sampler", None)):  # a DataLoader may have a DistributedSampler
        set_epoch = getattr(source, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
    for source in (loader, getattr(loader, "sampler", None)):  # each may have one of its own
        generator = getattr(source, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(epoch_seed(seed, epoch))
    done = 0
    for x, y in islice(loader, steps):
        if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype != torch.int64:
            got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"fit: epoch {epoch + 1}, step {done + 1}: got labels {got}; want int64 [N].")
        if isinstance(x, Tensor) and len(x) != len(y):
            raise ValueError(
                f"fit: epoch {epoch + 1}, step {done + 1}: got {len(x)} samples and {len(y)} labels."
            )
        yield x, y
        done += 1
    if done < steps:
        raise ValueError(
            f"fit: epoch {epoch + 1}: got {done} batches; want the {steps} that len(loader) says."
        )


def check_labels(where: str, epoch: int, step: int, num_classes: int, y: Tensor) -> None:
    """Raise ValueError for labels that the model has no output for; a GPU waits for this, so there only in step 0."""
    if step > 0 and y.device.type != "cpu":
        return
    low, high = (int(label) for label in y.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{where}: epoch {epoch + 1}, step {step + 1}: got labels from {low} to {high}; want 0 to "
            f"{num_classes - 1}, as the model has {num_classes} outputs."
        )


def steps_of(loader: Iterable[tuple[Any, Tensor]]) -> int:
    """The number of steps an epoch; ValueError where the loader does not say, or says none."""
    try:
        steps = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ValueError(
            f"fit: got a {type(loader).__name__} without len; want a loader that knows it."
        ) from error
    if steps < 1:
        raise ValueError("fit: got an empty loader; want at least one batch an epoch.")
    return steps


def rate_at(step: int, num_steps: int, warmup_steps: int) -> float:
    """Fraction of the peak learning rate: a line up to 1, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def decay_groups(net: nn.Module, decaying: dict[str, float]) -> list[dict[str, Any]]:
    """The optimizer's two groups: kernels and matrices with `decaying`, norms and biases without weight decay."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], **decaying},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def call(module: Callable[..., Tensor], x: Any) -> Tensor:
    """Run a module on a tensor, a tuple, or a dictionary of keyword tensors."""
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple | list) else module(x)


def autocast_of(where: str, device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for "bfloat16"; disabled rather than absent for "float32", so that code reads the same."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"{where}: got precision={precision!r}; want 'float32' or 'bfloat16'.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def logits_of(module: Callable[..., Tensor], x: Any, autocast: torch.autocast) -> Tensor:
    """Outputs of at least float32: the loss is not taken in half precision."""
    with autocast:
        logits = tensor_of(call(module, x))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def tensor_of(output: Any) -> Tensor:
    """What a model gave, if a loss can be taken of it."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"training: got a {type(output).__name__} as the model's output; want one tensor [N, classes]. Wrap the "
            "model in one that gives that."
        )
    return output


def tensors_in(x: Any) -> list[Tensor]:
    """The tensors of such an input."""
    values = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else [x]
    return [value for value in values if isinstance(value, Tensor)]


def to_device(x: Any, device: torch.device, channels_last: bool) -> Any:
    """The input on a device, images with their channels last where that is wanted."""
    if isinstance(x, dict):
        return {name: to_device(value, device, channels_last) for name, value in x.items()}
    if isinstance(x, tuple | list):
        return tuple(to_device(value, device, channels_last) for value in x)
    if not isinstance(x, Tensor):
        raise ValueError(
            f"loader: got a {type(x).__name__} in a batch; want a tensor, or a tuple or dictionary of tensors; "
            "torch.as_tensor makes one of an array."
        )
    layout = torch.channels_last if channels_last and x.ndim == 4 else torch.preserve_format
    return x.to(device, non_blocking=True, memory_format=layout)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Each submodule gets its own mode back, so that a norm frozen by the user stays frozen."""
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """An epoch's random numbers depend on nothing before it, which is why a checkpoint needs none of their state."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(epoch_seed(seed, epoch))
        yield


def variants(count: int) -> AbstractContextManager[None]:
    """Let so many models of one class be compiled: torch stops at the eighth variant of its code."""
    limit = 8 * (count + 1)
    return torch.compiler.config.patch(recompile_limit=limit)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def progress_bar(
    enabled: bool, total: int
) -> Iterator[tuple[Callable[[int, str, str], None], Callable[[str], None]]]:
    """Two functions: move the bar, and print a line above it."""
    if not enabled:
        yield (lambda *_: None), (lambda _: None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    status = TextColumn("{task.fields[status]}", markup=False)
    with Progress(
        TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn(), status, transient=True
    ) as bar:
        task = bar.add_task("", total=total, status="")
        yield (
            lambda done, what, status: bar.update(task, completed=done, description=what, status=status),
            lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
