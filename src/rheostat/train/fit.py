"""Train every subnet together on one set of weights: the fused loss, the teacher, the checkpoints; and measure them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rheostat.train import checkpoint as checkpoints
from rheostat.train import distributed
from rheostat.train.data import ImageLoader, epoch_seed
from rheostat.train.loop import (
    autocast_of,
    batches_of,
    call,
    check_labels,
    decay_groups,
    device_of,
    eval_mode,
    logits_of,
    progress_bar,
    rate_at,
    seeded,
    steps_of,
    tensor_of,
    tensors_in,
    to_device,
    variants,
)
from rheostat.train.norm import norms_in_rows
from rheostat.train.supernet import Supernet

# Reading a number makes a GPU wait, so the bar and the check for NaN do not look each step.
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Epoch:
    """One trained epoch: per subnet the mean loss and the accuracies (fractions, 0 to 1); `lr` is its last step's.

    `accuracy` is measured while training, on the augmented batches; `validation` afterwards, in eval mode. A subnet
    that the sandwich rule never drew in the epoch has no loss and no accuracy.
    """

    epoch: int
    seconds: float
    lr: float
    loss: dict[str, float]
    accuracy: dict[str, float]
    validation: dict[str, float]


def fit(
    net: Supernet,
    loader: Iterable[tuple[Any, Tensor]],
    *,
    epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    warmup: float = 0,
    teacher: nn.Module | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    inplace: bool = False,
    sandwich: bool = False,
    subnets: Sequence[int | str] | None = None,
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    precision: str = "float32",
    compile: bool = False,
    channels_last: bool = False,
    validation: Iterable[tuple[Any, Tensor]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    before_step: Callable[[int, float], None] | None = None,
    after_step: Callable[[int, float], None] | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train all subnets of `net` together and give one record an epoch (dynamic paper, equation 5).

    Each step every subnet, largest first, runs the same batch forward and backward; their gradients add up in the
    shared weights, and the optimizer moves those once. That minimises the sum of the subnets' losses.

    loader: gives `(x, y)`, y int64 [N]; `len(loader)` is the number of steps an epoch. x is what the model takes: a
        tensor, a tuple, or a dictionary of keyword tensors. An `ImageLoader`, a `DataLoader` or a list will do; one of
        your own is told the epoch by `set_epoch(epoch)` if it has that.
    lr, momentum, nesterov, weight_decay: of SGD; parameters of one dimension (norms, biases) do not decay. `optimizer`
        makes another one from two parameter groups, the second with `weight_decay=0.0`; these four are then its own
        business.
    warmup: epochs (a fraction will do) of linear rise before the cosine takes the learning rate to 0.
    teacher: a larger trained network: every subnet learns `(1 - distill) * CE(labels) + distill * temperature**2 *
        KL(teacher || subnet)`, where both logits are divided by `temperature`. It is copied, frozen, in eval mode, and
        asked about each batch once: see `ImageLoader`'s `cycle`.
    inplace: the largest subnet learns the labels, the others its output, detached (US-Nets).
    sandwich: train the largest, the smallest and two random subnets each step, not all.
    subnets: train these alone, by index or name; None for all. Weights that none of them has stay as they are.
    loss_weights: of each trained subnet's loss in the sum, smallest subnet first; None for 1 each, as in equation 5.
    clip_norm: the largest norm that the summed gradient may have.
    precision: "float32", or "bfloat16" for mixed precision, in which weights and losses stay float32.
    compile: run subnets and teacher through `torch.compile`; the first step then takes a minute or more. On a CPU it
        goes with `channels_last`, where batch norms are then summed in an order that vectorises.
    validation: measured after each epoch, the last time in float32, and then recorded in `net` for `save`.
    checkpoint: a file written after each epoch. With `resume=True` training goes on from it as if it had never stopped
        (on a CPU to the same bits; what a data set draws with other generators than torch's, or in persistent workers
        of a `DataLoader`, is not in it), or starts when
        there is none; settings that differ from its own are refused.
    before_step, after_step: called with the step, counted from 0 over the whole run, and the learning rate: when the
        summed gradients are in the shared parameters' `grad`, and when the optimizer has moved those.
    progress: show a bar with the running loss and accuracy of every subnet, and a line for each epoch.
    seed: of dropout, the sandwich and a `DataLoader`'s order, anew each epoch. torch's generators are left as found.

    Where `torch.distributed` has been started (torchrun, Accelerate, Fabric) the processes train together: one
    all-reduce of the summed gradient a step, norm statistics averaged every epoch, and only the first process writes. A
    loader other than `ImageLoader` gives each process its own share. A checkpoint resumes under any number of them.

    Raises ValueError for wrong arguments or batches, and when a loss is no longer finite (a checkpoint then keeps the
    last good epoch); OSError when the checkpoint cannot be written; ArtifactError when it cannot be read.

    >>> history = fit(net, loader, epochs=30, teacher=teacher, checkpoint="run.safetensors")  # doctest: +SKIP
    >>> history[-1].accuracy  # doctest: +SKIP
    {'0.25': 0.81, '0.5': 0.87, '0.75': 0.9, '1.0': 0.91}
    """
    if not isinstance(net, Supernet):
        raise ValueError(
            f"fit: got a {type(net).__name__}; want a Supernet, which shares its weights with net[k]"
        )
    steps = steps_of(loader)
    _check_settings(epochs, lr, warmup, distill, temperature, label_smoothing, clip_norm)
    if teacher is not None and inplace:
        raise ValueError(
            "fit: got teacher= and inplace=True; want one source of soft labels. Leave one of them out."
        )
    trained = sorted({net.index(s) for s in (range(len(net)) if subnets is None else subnets)})
    if not trained:
        raise ValueError("fit: got subnets=[]; want at least one, or None for all")
    names, largest = [net.names[k] for k in trained], len(trained) - 1
    weights = [1.0] * len(trained) if loss_weights is None else [float(w) for w in loss_weights]
    if len(weights) != len(trained) or not all(0 < w < math.inf for w in weights):
        raise ValueError(
            f"fit: got loss_weights={weights}; want a number above 0 for each of {', '.join(names)}."
        )
    device = next(net.parameters()).device
    autocast = autocast_of("fit", device, precision)

    if optimizer is None:
        groups = decay_groups(net, {"weight_decay": weight_decay})
        optim: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr, momentum, nesterov=nesterov and momentum > 0
        )
    else:
        optim = optimizer(decay_groups(net, {}))
    own = {id(parameter) for parameter in net.parameters()}
    if any(id(parameter) not in own for group in optim.param_groups for parameter in group["params"]):
        raise ValueError(
            "fit: got an optimizer of parameters that are not the supernet's; want one of the two groups that "
            "optimizer= is called with."
        )
    peaks = [group["lr"] for group in optim.param_groups]

    history: list[Epoch] = []
    settings = {
        "subnets": {subnet.name: list(subnet.units or subnet.widths) for subnet in net.subnets},
        "trained": names,
        "loss_weights": weights,
        "levels": _digest(net.levels),
        "loader": repr(loader) if isinstance(loader, ImageLoader) else type(loader).__name__,
        "steps": steps,
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "optimizer": type(optim).__name__,
        "lr": peaks,
        "warmup": warmup,
        "teacher": None if teacher is None else [_digest(teacher.state_dict()), distill, temperature],
        "inplace": inplace,
        "sandwich": sandwich,
        "label_smoothing": label_smoothing,
        "clip_norm": clip_norm,
    }
    options = sorted({name for group in optim.param_groups for name in group} - {"params", *settings})
    settings |= {name: [group.get(name) for group in optim.param_groups] for name in options}
    distributed.check_same("fit", settings, device)
    if checkpoint is not None:
        saved = checkpoints.resumed("fit", checkpoint, resume, settings)
        if saved is not None:
            history = [Epoch(**record) for record in saved.state["history"]]
        # Where they do not see one file, only the first one's is up to date.
        distributed.check_same(f"fit: {checkpoint}", {"epochs already trained": len(history)}, device)
        if saved is not None:
            checkpoints.restore_(net, optim, saved)
        else:  # also finds out now, and not after an epoch, that nothing can be written there
            checkpoints.write(checkpoint, net, optim, {"settings": settings, "history": []})
    distributed.broadcast_(net)
    net.refreeze_()  # at the values of the first process
    net.refresh_()
    net.forget_()

    run = torch.compile(dynamic=False) if compile else _as_it_is
    modules = [run(net[k]) for k in trained]
    guide = None if teacher is None else _frozen(teacher, device, channels_last)
    if guide is not None and compile:
        # Its norms are constant and go into the convolutions: a third less time for a ResNet-44.
        guide = torch.compile(guide, dynamic=False, options={"efficient_conv_bn_eval_fx_passes": True})
    cycle = steps * (loader.cycle or 0) if isinstance(loader, ImageLoader) else 0
    answers: dict[int, Tensor] = {}  # of the teacher, to batches that come again

    def answer(number: int, x: Any) -> Tensor:
        assert guide is not None
        if cycle and number % cycle in answers:
            return answers[number % cycle]
        with torch.no_grad():
            logits = logits_of(guide, x, autocast)
        if cycle:
            answers[number % cycle] = logits
        return logits

    def train_step(
        number: int, rate: float, x: Any, y: Tensor, picked: Sequence[int], losses: Tensor, hits: Tensor
    ) -> None:
        """One step on one batch; writes the loss and the number of right answers of each subnet `picked`."""
        soft = torch.empty(0) if guide is None else answer(number, x)
        net.attach_grads_()
        for k in sorted(picked, reverse=True):
            logits = logits_of(modules[k], x, autocast)
            if guide is not None:
                loss = distillation_loss(logits, y, soft, distill, temperature, label_smoothing)
            elif inplace and k < largest:
                loss = F.cross_entropy(logits, soft)
            else:
                loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
            (weights[k] * loss).backward()
            logits = logits.detach()
            if inplace and k == largest:
                soft = logits.softmax(1)
            losses[k] = loss.detach()
            hits[k] = (logits.argmax(1) == y).sum()
        net.collect_grads_()
        distributed.average_(p.grad for p in net.parameters() if p.grad is not None)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        if before_step is not None:
            before_step(number, rate)
        optim.step()
        if after_step is not None:
            after_step(number, rate)
        net.refresh_()

    with (
        _quiet(len(net)),
        net.holding_(trained),
        norms_in_rows([net[k] for k in trained] if compile and channels_last else []),
        progress_bar(progress and distributed.rank() == 0 and len(history) < epochs, epochs * steps) as (
            show,
            note,
        ),
    ):
        for epoch in range(len(history), epochs):
            started = looked = time.perf_counter()
            num_classes = 0  # until the first batch has told
            meter = _Meter(names, steps, device)
            with seeded(seed, epoch, device):
                picks = (
                    _sandwich_picks(len(names), steps, seed, epoch)
                    if sandwich
                    else [range(len(names))] * steps
                )
                net.train()
                for step, (x, y) in enumerate(batches_of(loader, steps, seed, epoch)):
                    x, y = to_device(x, device, channels_last), y.to(device, non_blocking=True)
                    if step == 0:
                        num_classes = _check_batch(net, x, y)
                    check_labels("fit", epoch, step, num_classes, y)
                    number = epoch * steps + step
                    rate = rate_at(number, epochs * steps, round(warmup * steps))
                    for group, peak in zip(optim.param_groups, peaks, strict=True):
                        group["lr"] = rate * peak
                    train_step(
                        number, rate * peaks[0], x, y, picks[step], meter.losses[step], meter.hits[step]
                    )
                    meter.sizes[step, list(picks[step])] = len(y)
                    if time.perf_counter() - looked > SECONDS_BETWEEN_LOOKS:
                        meter.check_finite(epoch, step + 1, checkpoint)
                        show(epoch * steps + step + 1, f"epoch {epoch + 1}/{epochs}", meter.text(step + 1))
                        looked = time.perf_counter()
                meter.check_finite(epoch, steps, checkpoint)
                buffers = (b for k in trained for b in net[k].buffers())
                distributed.average_(b for b in buffers if b.is_floating_point())
                _check_tensors_finite(net, epoch, checkpoint)
                scores: dict[str, float] = {}
                if validation is not None:
                    # The artifact is float32, so the numbers that go into it are measured so.
                    last = epoch == epochs - 1
                    kind = autocast_of("fit", device, "float32") if last else autocast
                    with eval_mode(*net):
                        found = _accuracies(
                            [net[k] for k in trained], validation, device, kind, channels_last, together=True
                        )
                    scores = dict(zip(names, found, strict=True))
            distributed.average_([meter.losses, meter.hits])
            loss, accuracy = meter.means(steps)
            seconds = time.perf_counter() - started
            history.append(Epoch(epoch + 1, seconds, optim.param_groups[0]["lr"], loss, accuracy, scores))
            if checkpoint is not None:
                state = {"settings": settings, "history": [dataclasses.asdict(record) for record in history]}
                checkpoints.write(checkpoint, net, optim, state)
            note(_summary(history[-1], epochs))
    for name, accuracy in history[-1].validation.items():
        net.record(name, accuracy=accuracy)
    return history


def distillation_loss(
    logits: Tensor,
    y: Tensor,
    teacher_logits: Tensor,
    distill: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`(1 - a) CE(y, z) + a T^2 KL(softmax(z_teacher / T) || softmax(z / T))`, the mean over the batch.

    T^2 keeps the gradient of the soft part, which falls with 1/T^2, on the scale of the hard one. Raises ValueError for
    a teacher of another shape of outputs.

    >>> z = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(z, torch.tensor([0]), z, 1.0, 4.0))  # the teacher's own logits
    0.0
    """
    if teacher_logits.shape != logits.shape:
        raise ValueError(
            f"distillation_loss: got outputs {list(teacher_logits.shape)} of the teacher; want {list(logits.shape)}, "
            "as the network gives."
        )
    hard = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    own, wanted = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher_logits / temperature, 1)
    soft = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return (1 - distill) * hard + distill * temperature**2 * soft


def evaluate(
    net: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    *,
    precision: str = "float32",
    channels_last: bool = False,
) -> dict[str, float] | float:
    """Fraction of right answers over a loader: of each subnet by name for a `Supernet`, one number for another module.

    Runs in eval mode and leaves the mode as it was; precision: as in `fit`. Raises ValueError when the loader is empty,
    for labels that are not integers [N], and for outputs that are not [N, classes].

    >>> evaluate(torch.nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    0.75
    """
    modules = [net[k] for k in range(len(net))] if isinstance(net, Supernet) else [net]
    device = device_of(net)
    autocast = autocast_of("evaluate", device, precision)
    with eval_mode(*modules):
        scores = _accuracies(modules, loader, device, autocast, channels_last)
    return dict(zip(net.names, scores, strict=True)) if isinstance(net, Supernet) else scores[0]


@torch.no_grad()
def recalibrate(net: nn.Module, loader: Iterable[tuple[Any, Tensor]], batches: int | None = None) -> None:
    """Measure the batch-norm statistics of every subnet afresh: the plain average over `batches` batches (None: all).

    Needed when weights changed after the statistics were gathered, and for widths that were not trained (US-Nets,
    section 3.3). Only batch norms run in training mode; nothing else of the network changes. Raises ValueError when the
    loader is empty; whatever is raised, the statistics are then as they were. Recorded accuracies are dropped.
    """
    if isinstance(net, Supernet):
        net.forget_()
    modules = [net[k] for k in range(len(net))] if isinstance(net, Supernet) else [net]
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    with eval_mode(*modules):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative average
            norm.train()
        try:
            num_batches = 0
            for x, _ in islice(loader, batches):
                for module in modules:
                    call(module, to_device(x, device_of(net), channels_last=False))
                num_batches += 1
            if num_batches == 0:
                raise ValueError(
                    "recalibrate: got no batch; want at least one. Check the loader and batches=."
                )
        except BaseException:
            for norm, buffers in zip(norms, before, strict=True):
                norm.load_state_dict(buffers, strict=False)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


class _Meter:
    """Loss and right answers of every step and subnet of one epoch, on the device until somebody looks."""

    def __init__(self, names: list[str], steps: int, device: torch.device) -> None:
        self.names = names
        self.losses = torch.zeros(steps, len(names), device=device)
        self.hits = torch.zeros(steps, len(names), device=device)
        self.sizes = torch.zeros(steps, len(names))  # samples a subnet has seen in a step

    def means(self, done: int) -> tuple[dict[str, float], dict[str, float]]:
        sizes = self.sizes[:done].double()
        seen = sizes.sum(0)
        drawn = seen.nonzero().ravel().tolist()
        loss = (self.losses[:done].cpu() * sizes).sum(0) / seen
        accuracy = self.hits[:done].cpu().double().sum(0) / seen
        return {self.names[k]: float(loss[k]) for k in drawn}, {
            self.names[k]: float(accuracy[k]) for k in drawn
        }

    def text(self, done: int) -> str:
        loss, accuracy = self.means(done)
        return "  ".join(f"{name}: {loss[name]:.3f} {100 * accuracy[name]:.1f}%" for name in loss)

    def check_finite(self, epoch: int, done: int, checkpoint: str | os.PathLike[str] | None) -> None:
        bad = (~self.losses[:done].isfinite()).cpu().nonzero()
        if len(bad):
            step, k = bad[0].tolist()
            raise ValueError(
                f"fit: epoch {epoch + 1}, step {step + 1}: got loss {float(self.losses[step, k])} in subnet "
                f"{self.names[k]!r}; want a finite one. {_kept(checkpoint, epoch)}Lower lr, or set clip_norm=."
            )


def _check_tensors_finite(net: Supernet, epoch: int, checkpoint: str | os.PathLike[str] | None) -> None:
    """The last step may have spoilt the weights after its loss was taken; one question an epoch for all of them."""
    tensors = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    spoilt = [name for name, good in zip(tensors, finite, strict=True) if not good]
    if spoilt:
        raise ValueError(
            f"fit: epoch {epoch + 1}: {spoilt[0]}: got a value that is not finite (in {len(spoilt)} of {len(tensors)} "
            f"tensors); want finite weights. {_kept(checkpoint, epoch)}Lower lr, or set clip_norm=."
        )


def _kept(checkpoint: str | os.PathLike[str] | None, epoch: int) -> str:
    return "" if checkpoint is None else f"{checkpoint} keeps epoch {epoch}, the last good one. "


def _accuracies(
    modules: Sequence[Callable[..., Tensor]],
    loader: Iterable[tuple[Any, Tensor]],
    device: torch.device,
    autocast: torch.autocast,
    channels_last: bool,
    together: bool = False,
) -> list[float]:
    """The loader is read once for all modules. together: over what all processes have read, shares or the whole."""
    hits, num_samples = torch.zeros(len(modules), device=device), 0
    with torch.no_grad():
        for x, y in loader:
            x, y = to_device(x, device, channels_last), torch.as_tensor(y, device=device)
            for k, module in enumerate(modules):
                logits = logits_of(module, x, autocast)
                if logits.ndim != 2 or y.shape != logits.shape[:1] or y.is_floating_point():
                    raise ValueError(
                        f"evaluate: got labels {y.dtype} {list(y.shape)} for outputs {list(logits.shape)}; want "
                        "integers [N] for outputs [N, classes]."
                    )
                hits[k] += (logits.argmax(1) == y).sum()
            num_samples += len(y)
    counts = torch.cat([hits, hits.new_tensor([num_samples])])
    if together:
        distributed.average_([counts])
    if counts[-1] == 0:
        raise ValueError("evaluate: got an empty loader; want at least one batch.")
    return (counts[:-1].double() / counts[-1]).tolist()


def _check_batch(net: Supernet, x: Any, y: Tensor) -> int:
    """The number of classes: the largest subnet's outputs for one batch, or a wrong shape told in our words."""
    try:
        with torch.no_grad(), eval_mode(net[-1]), torch.random.fork_rng([]):
            logits = call(net[-1], x)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        got = [list(tensor.shape) for tensor in tensors_in(x)]
        want = [list(tensor.shape) for tensor in tensors_in(net.graph.kwargs or net.graph.args)]
        raise ValueError(
            f"fit: got a batch of shapes {got}, which the model does not take ({error}); want them like those of the "
            f"traced example, {want}."
        ) from error
    logits = tensor_of(logits)
    if logits.ndim != 2 or len(logits) != len(y):
        raise ValueError(f"fit: got outputs {list(logits.shape)} for {len(y)} labels; want [N, classes].")
    return logits.shape[1]


def _check_settings(
    epochs: int,
    lr: float,
    warmup: float,
    distill: float,
    temperature: float,
    label_smoothing: float,
    clip_norm: float | None,
) -> None:
    rules = [
        (isinstance(epochs, Integral) and epochs >= 1, f"epochs={epochs}", "1 or more"),
        (lr > 0, f"lr={lr}", "above 0"),
        (0 <= warmup < max(epochs, 1), f"warmup={warmup}", f"0 or more epochs, fewer than all {epochs}"),
        (0 <= distill <= 1, f"distill={distill}", "0 (labels only) to 1 (teacher only)"),
        (temperature > 0, f"temperature={temperature}", "above 0"),
        (0 <= label_smoothing < 1, f"label_smoothing={label_smoothing}", "0 to below 1"),
        (clip_norm is None or clip_norm > 0, f"clip_norm={clip_norm}", "above 0, or None"),
    ]
    for good, got, want in rules:
        if not good:
            raise ValueError(f"fit: got {got}; want {want}.")


def _sandwich_picks(num_subnets: int, steps: int, seed: int, epoch: int) -> list[Sequence[int]]:
    """The subnets that each step trains: the smallest, two between, the largest (US-Nets, section 3.2)."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    between = max(num_subnets - 2, 0)
    draws = [(1 + torch.randperm(between, generator=generator)[:2]).tolist() for _ in range(steps)]
    return [sorted({0, *draw, num_subnets - 1}) for draw in draws]


def _frozen(teacher: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    layout = torch.channels_last if channels_last else torch.preserve_format
    teacher = copy.deepcopy(teacher).to(device)
    return teacher.to(memory_format=layout).eval().requires_grad_(False)  # pyright: ignore[reportCallIssue]


def _as_it_is(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return module


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _quiet(num_subnets: int) -> Iterator[None]:
    """Settings of torch that many subnets of one class need; both are put back."""
    with warnings.catch_warnings(), variants(num_subnets):
        # Aliases have the layout of a slice, not of a small tensor: that is the point of them.
        warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
        yield


def _summary(record: Epoch, epochs: int) -> str:
    def score(name: str) -> str:
        valid = f" {100 * record.validation[name]:.1f}%" if record.validation else ""
        return f"{name}: {record.loss[name]:.3f} {100 * record.accuracy[name]:.1f}%{valid}"

    what = "loss, training, validation" if record.validation else "loss, training"
    scores = "  ".join(score(name) for name in record.loss)
    return f"epoch {record.epoch}/{epochs}  {record.seconds:.0f} s  ({what})  {scores}"
