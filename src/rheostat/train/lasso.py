"""Subnets learned by pruning: the clipped group Lasso, and the sets of units that it leaves alive."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rheostat.spec import Subnet
from rheostat.train import checkpoint as checkpoints
from rheostat.train import distributed
from rheostat.train.data import ImageLoader
from rheostat.train.graph import Graph, check_graph
from rheostat.train.loop import (
    autocast_of,
    batches_of,
    check_labels,
    decay_groups,
    logits_of,
    progress_bar,
    seeded,
    steps_of,
    to_device,
    variants,
)
from rheostat.train.norm import norms_in_rows
from rheostat.train.sample import subnet_of, uniform
from rheostat.train.small import module_of
from rheostat.train.supernet import Supernet


@dataclass(frozen=True)
class Lasso:
    """How a background model is trained until units die: `CE + strength * sum(min(norm, tau))` (dynamic paper, eq. 2).

    strength: lambda. None chooses it so that all steps together can shrink a norm by `shrink` times the mean initial
        norm; papers give no value. The smaller the target, the more of it is needed.
    clip: beta: tau is `clip` times the mean norm of the group, a constant in each step, and only units below it shrink.
        None is the plain group Lasso, which shrinks all units alike.
    tau_over: the mean is over units that are "alive", or "all" (the paper's letter, with which pruning stalls).
    dead_below: a unit whose norm falls below this fraction of the mean alive one is set to zero, for good. Norms part
        in two, and weak ones hover at 0.08 to 0.25 of the mean: a lower threshold stalls, as `docs/papers.md` shows.
    min_width, min_units: a group keeps at least this fraction and this number of its units.
    epochs, lr, momentum, weight_decay: of plain SGD at a constant rate.

    >>> Lasso(epochs=20).clip
    0.98
    """

    strength: float | None = None
    shrink: float = 5.0
    clip: float | None = 0.98
    tau_over: str = "alive"
    dead_below: float = 0.25
    min_width: float = 0.125
    min_units: int = 4
    epochs: int = 60
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        rules = [
            (self.strength is None or self.strength >= 0, f"strength={self.strength}", "0 or more, or None"),
            (self.shrink > 0, f"shrink={self.shrink}", "above 0"),
            (self.clip is None or self.clip > 0, f"clip={self.clip}", "above 0, or None"),
            (self.tau_over in ("alive", "all"), f"tau_over={self.tau_over!r}", "'alive' or 'all'"),
            (0 <= self.dead_below < 1, f"dead_below={self.dead_below}", "0 to below 1"),
            (0 <= self.min_width <= 1, f"min_width={self.min_width}", "0 to 1"),
            (
                isinstance(self.min_units, Integral) and self.min_units >= 1,
                f"min_units={self.min_units}",
                "1 or more",
            ),
            (isinstance(self.epochs, Integral) and self.epochs >= 1, f"epochs={self.epochs}", "1 or more"),
            (0 < self.lr < math.inf, f"lr={self.lr}", "above 0"),
            (0 <= self.momentum < 1, f"momentum={self.momentum}", "0 to below 1"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay}", "0 or more"),
        ]
        for good, got, want in rules:
            if not good:
                raise ValueError(f"Lasso: got {got}; want {want}.")


@dataclass(frozen=True)
class Snapshot:
    """When a subnet was taken, in steps and in `seconds` of its run; its costs; `strength` and `clip` as in `Lasso`."""

    epoch: int
    step: int
    seconds: float
    strength: float
    clip: float | None
    parameters: int
    macs: int


class Sampled(tuple[Subnet, ...]):
    """Subnets, smallest first, the whole model last; `snapshots` of all but that, and the `seconds` of all training."""

    snapshots: tuple[Snapshot, ...]
    seconds: float

    @classmethod
    def of(cls, subnets: Iterable[Subnet], snapshots: Iterable[Snapshot], seconds: float) -> Sampled:
        """Put them together."""
        sampled = cls(subnets)
        sampled.snapshots, sampled.seconds = tuple(snapshots), seconds
        return sampled


def single_path(
    graph: Graph,
    loader: Iterable[tuple[Any, Tensor]],
    lasso: Lasso = Lasso(),
    *,
    macs: Sequence[float] = (),
    parameters: Sequence[float] = (),
    snapshots: Sequence[int] = (),
    precision: str = "float32",
    compile: bool = False,
    channels_last: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Sampled:
    """Prune a copy of the background model once, and take a subnet at each moment asked for (dynamic paper, eq. 4).

    A unit that died stays dead, so the subnets nest by construction. Training stops at the last of them; the whole
    model comes last in the result. `graph.model` keeps its weights: they are what the supernet starts from.

    macs, parameters, snapshots: give one of them: multiply-accumulates or parameters that a subnet may have at most, or
        the epochs after which to take one.
    precision, compile, channels_last, checkpoint, resume: as in `fit`; when a run stalls, resume it with more
        `lasso.epochs` or another `lasso.strength`.

    Raises ValueError for targets out of reach and for a run that ended before it came to them.

    >>> subnets = single_path(graph, loader, macs=(2.2e6, 9.6e6, 19.8e6))  # doctest: +SKIP
    >>> net = Supernet(graph, subnets)  # doctest: +SKIP
    """
    graph = _checked(graph)
    targets = _Targets.of("single_path", graph, lasso, macs, parameters, snapshots)
    run = _Run(graph, loader, lasso, precision, compile, channels_last, seed, progress)
    taken, seconds = run(targets, None, checkpoint, resume)
    return _named(graph, taken, seconds)


def multi_path(
    graph: Graph,
    loader: Iterable[tuple[Any, Tensor]],
    lasso: Lasso = Lasso(),
    *,
    macs: Sequence[float] = (),
    parameters: Sequence[float] = (),
    strengths: Sequence[float] = (),
    bisections: int = 0,
    inside_previous: bool = True,
    precision: str = "float32",
    compile: bool = False,
    channels_last: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Sampled:
    """Prune a fresh copy of the background model for each subnet (dynamic paper, eq. 3).

    macs, parameters, strengths: give one of them: what a subnet may have at most, or its lambda.
    bisections: 0 stops a run as soon as it crosses its target. Otherwise so many complete runs look for the lambda with
        which the last step comes closest to the target from below, in the logarithm of lambda.
    inside_previous: each smaller subnet is sampled inside the one before, so that they nest: in a model of that one's
        size, or in the whole with zeros where zero padding chains groups. Otherwise every run is free, as in the paper;
        see `nest`. Free runs of one lambda and one order of samples are one and the same run.
    checkpoint: one file for each run is written beside this path.

    Raises ValueError as `single_path` does.

    >>> subnets = multi_path(graph, loader, Lasso(epochs=60), macs=(2.2e6, 9.6e6, 19.8e6))  # doctest: +SKIP
    """
    graph = _checked(graph)
    if not isinstance(bisections, Integral) or bisections < 0:
        raise ValueError(f"multi_path: got bisections={bisections}; want 0 or more.")
    if strengths and (macs or parameters or bisections):
        raise ValueError(
            "multi_path: got strengths= and a target or bisections=; want one of macs=, parameters=, strengths=."
        )
    found: list[tuple[np.ndarray, Snapshot]] = []
    number, total, inside = 0, 0.0, None

    def train(targets: _Targets, strength: float | None) -> tuple[np.ndarray, Snapshot]:
        nonlocal total, number
        own = None
        if checkpoint is not None:
            own = Path(checkpoint).with_name(f"{Path(checkpoint).stem}-{number}{Path(checkpoint).suffix}")
        number += 1
        setting = replace(lasso, strength=lasso.strength if strength is None else strength)
        run = _Run(graph, loader, setting, precision, compile, channels_last, seed, progress)
        with variants(max(map(len, (macs, parameters, strengths)))):  # each has a size of its own
            taken, seconds = run(targets, inside, own, resume)
        total += seconds
        return taken[0]

    if strengths:
        at_end = _Targets("epochs", (lasso.epochs,))
        for strength in sorted(strengths):
            found.append(train(at_end, strength))
            inside = found[-1][0] if inside_previous else None
    else:
        targets = _Targets.of("multi_path", graph, lasso, macs, parameters, ())
        for size in targets.values:
            one = replace(targets, values=(size,))
            found.append(_bisect(train, one, lasso, bisections) if bisections else train(one, None))
            inside = found[-1][0] if inside_previous else None
    return _named(graph, found, total)


def _bisect(train: Any, target: _Targets, lasso: Lasso, runs: int) -> tuple[np.ndarray, Snapshot]:
    """The largest result of complete runs that is not above the target, by doubling and halving lambda in between."""
    (size,) = target.values
    at_end = _Targets("epochs", (lasso.epochs,))
    low = high = best = None
    strength = lasso.strength
    for _ in range(runs):
        keep, snapshot = train(at_end, strength)
        got, strength = getattr(snapshot, target.what), snapshot.strength
        if got <= size:
            high = strength
            best = (keep, snapshot) if best is None or got > getattr(best[1], target.what) else best
        else:
            low = strength
        strength = strength * 2 if high is None else strength / 2 if low is None else math.sqrt(low * high)
    if best is None:
        raise ValueError(
            f"multi_path: {runs} runs up to lambda {low:.3g} did not come down to {size:.6g} {target.what}; want more "
            "bisections=, epochs or shrink."
        )
    return best


# --- equation 2 -------------------------------------------------------------------------------------------------------


def penalty(norms: Tensor, tau: Tensor) -> Tensor:
    """`sum(min(norm, tau))`, with tau a constant: a unit at or above it feels nothing (dynamic paper, eq. 2).

    If tau were not detached, every unit would be pushed down through the mean, and the selectivity be gone.

    >>> penalty(torch.tensor([1.0, 3.0]), torch.tensor(2.0))
    tensor(3.)
    """
    return torch.minimum(norms, tau.detach()).sum()


class Pruner:
    """The units of a model in training: their norms, the threshold, who is alive; zeros are sticky.

    The norm of a unit is over all the weights that produce it (a filter; for channels coupled by additions, the filters
    of every member, a shortcut's included), as one vector. Weights that only read it do not count: they belong to other
    filters, each in its own term of the sum.

    alive, present: True for the units that are alive, and for those that `model` has; None for all.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        lasso: Lasso,
        alive: np.ndarray | None = None,
        present: np.ndarray | None = None,
    ) -> None:
        self.graph, self.lasso = graph, lasso
        parameters = dict(model.named_parameters(remove_duplicate=False))
        device = next(iter(parameters.values())).device
        num_units = sum(g.size for g in graph.groups)
        group_of = np.full(num_units + 1, len(graph.groups))  # the last entry: what belongs to no group
        for g, group in enumerate(graph.groups):
            group_of[group.first_unit : group.first_unit + group.size] = g
        floors = [g.size if g.pinned else min(g.size, self._floor(g.size)) for g in graph.groups]
        self.floors = tuple(floors)
        self.group_of = torch.from_numpy(group_of).to(device)
        alive = np.ones(num_units + 1, bool) if alive is None else alive.copy()
        self.alive = torch.from_numpy(alive).to(device)
        self.counts = [int(alive[group_of == g].sum()) for g in range(len(graph.groups))]
        # (parameter, dim, the unit at each index, whether these weights produce the unit)
        self._axes: list[tuple[nn.Parameter, int, Tensor, bool]] = []
        weights = graph.filter_dims()
        for name, dims in graph.axes.items():
            for dim, units in enumerate(dims):
                if name in parameters and units is not None and (units >= 0).any():
                    where = units % (num_units + 1)
                    where = torch.from_numpy(where if present is None else where[present[where]]).to(device)
                    produces = weights.get(name) == dim and name not in graph.private
                    self._axes.append((parameters[name], dim, where, produces))
        self._find_free()

    def _floor(self, size: int) -> int:
        return max(self.lasso.min_units, math.ceil(self.lasso.min_width * size))

    def _find_free(self) -> None:
        """Alive units of groups above their floor: the only ones that are shrunk."""
        above = [n > floor for n, floor in zip(self.counts, self.floors, strict=True)] + [False]
        self.free = self.alive & torch.tensor(above, device=self.alive.device)[self.group_of]

    def norms(self) -> Tensor:
        """L2 norm of every unit, differentiable; the last entry is meaningless."""
        total = torch.zeros(len(self.alive), device=self.alive.device)
        for parameter, dim, units, produces in self._axes:
            if produces:
                total = total.index_add(
                    0, units, parameter.movedim(dim, 0).flatten(1).square().sum(1).float()
                )
        return total.sqrt()

    def means(self, norms: Tensor, over: Tensor) -> Tensor:
        """At each unit, the mean norm of its group's units that are in `over`."""
        shape = len(self.graph.groups) + 1
        sums = torch.zeros(shape, device=norms.device).index_add_(0, self.group_of, norms.detach() * over)
        counts = torch.zeros(shape, device=norms.device).index_add_(0, self.group_of, over.float())
        return (sums / counts.clamp(min=1))[self.group_of]

    def tau(self, norms: Tensor) -> Tensor:
        """At each unit, the norm from which its group is spared."""
        if self.lasso.clip is None:
            return torch.full_like(norms, torch.inf)
        over = self.alive if self.lasso.tau_over == "alive" else torch.ones_like(self.alive)
        return self.lasso.clip * self.means(norms, over)

    def strength(self, steps: int) -> float:
        """Lambda: as given, or so that `steps` steps shrink a norm by `shrink` times the mean of today's."""
        if self.lasso.strength is not None:
            return self.lasso.strength
        mean = float(self.norms().detach()[self.free].mean()) if self.free.any() else 0.0
        return self.lasso.shrink * mean * (1 - self.lasso.momentum) / (self.lasso.lr * steps)

    @torch.no_grad()
    def shrink_(self, amount: float) -> list[int]:
        """The proximal step after the optimizer's: `W *= max(0, 1 - amount / norm)` below tau.

        Gives the units that fell below `dead_below`, weakest first; `kill_` has the last word. Those that the floor of
        their group protects keep their weights.
        """
        norms = self.norms()
        after = torch.where(self.free & (norms < self.tau(norms)), (norms - amount).clamp(min=0), norms)
        dying = self.free & (after <= self.lasso.dead_below * self.means(norms, self.alive))
        weakest: list[int] = []
        if bool(dying.any()):
            candidates = torch.nonzero(dying).ravel()
            left = [n - floor for n, floor in zip(self.counts, self.floors, strict=True)]
            for unit in candidates[norms[candidates].argsort(stable=True)].tolist():
                group = int(self.group_of[unit])
                if left[group] > 0:
                    left[group] -= 1
                    weakest.append(unit)
                else:
                    after[unit] = norms[unit]
        factor = torch.where(norms > 0, after / norms, 1.0)
        for parameter, dim, units, produces in self._axes:
            if produces:
                parameter.mul_(_along(factor[units], dim, parameter))
        return weakest

    def kill_(self, unit: int) -> None:
        """A unit is dead from now on; `hold_` zeroes it."""
        self.alive[unit] = False
        self.counts[int(self.group_of[unit])] -= 1
        self._find_free()

    @torch.no_grad()
    def hold_(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero every weight, bias, norm affine and momentum of dead units, whether it produces or reads them."""
        for parameter, dim, units, _ in self._axes:
            alive = _along(self.alive[units], dim, parameter)
            parameter.mul_(alive)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.mul_(alive)

    def keep(self) -> np.ndarray:
        """True for every unit that is alive."""
        return self.alive.cpu().numpy().copy()


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    return values.view([-1 if d == dim else 1 for d in range(like.dim())]).to(like.dtype)


# --- one training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Targets:
    """When to take a subnet: "macs" or "parameters" at most these, largest first; or after these "epochs"."""

    what: str
    values: tuple[float, ...]

    @classmethod
    def of(
        cls,
        where: str,
        graph: Graph,
        lasso: Lasso,
        macs: Sequence[float],
        parameters: Sequence[float],
        epochs: Sequence[int],
    ) -> _Targets:
        check_graph(where, graph)
        given = {"macs": macs, "parameters": parameters, "epochs": epochs}
        chosen = [(what, values) for what, values in given.items() if len(values)]
        if len(chosen) != 1 or len(set(chosen[0][1])) != len(chosen[0][1]):
            raise ValueError(f"{where}: got {len(chosen)} kinds of targets; want one, of different values.")
        what, values = chosen[0]
        if what == "epochs":
            if not all(isinstance(e, Integral) and 1 <= int(e) <= lasso.epochs for e in values):
                raise ValueError(
                    f"{where}: got snapshots={tuple(values)}; want epochs from 1 to {lasso.epochs}."
                )
            return cls(what, tuple(sorted(values)))
        floors = Pruner(graph, graph.model, lasso).floors
        least, most = (
            getattr(graph.cost(graph.legal(w)), what) for w in (floors, [g.size for g in graph.groups])
        )
        if not all(least <= value < most for value in values):
            raise ValueError(
                f"{where}: got {what}={tuple(values)}; want from {least}, which min_width and min_units leave, to "
                f"below {most}, the whole model's."
            )
        return cls(what, tuple(sorted(values, reverse=True)))


@dataclass(frozen=True)
class _Run:
    """One training of a copy of the background model, or of its units `inside` alone."""

    graph: Graph
    loader: Iterable[tuple[Any, Tensor]]
    lasso: Lasso
    precision: str
    compile: bool
    channels_last: bool
    seed: int
    progress: bool

    def __call__(
        self,
        targets: _Targets,
        inside: np.ndarray | None,
        checkpoint: str | os.PathLike[str] | None,
        resume: bool,
    ) -> tuple[list[tuple[np.ndarray, Snapshot]], float]:
        """The units kept at each target, in the order in which they were reached, and the seconds it took."""
        lasso, graph = self.lasso, self.graph
        steps = steps_of(self.loader)
        distributed.broadcast_(graph.model)
        present = None if graph.chained else inside
        model = copy.deepcopy(graph.model) if present is None else module_of(graph, graph.model, present)
        model.train()
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        device = next(model.parameters()).device
        run = torch.compile(model, dynamic=False) if self.compile else model
        autocast = autocast_of("Lasso", device, self.precision)
        decaying = decay_groups(model, {"weight_decay": lasso.weight_decay})
        optim = torch.optim.SGD(decaying, lasso.lr, lasso.momentum)
        pruner = Pruner(graph, model, lasso, inside, present)
        pruner.hold_(optim)
        strength = pruner.strength(lasso.epochs * steps)
        amount = strength * lasso.lr / (1 - lasso.momentum)
        taken: list[tuple[np.ndarray, Snapshot]] = []
        first, before, started = 0, 0.0, time.perf_counter()
        settings = {
            **{k: v for k, v in asdict(lasso).items() if k not in ("strength", "shrink", "epochs")},
            "targets": asdict(targets),
            "inside": None if inside is None else np.flatnonzero(inside).tolist(),
            "loader": repr(self.loader)
            if isinstance(self.loader, ImageLoader)
            else type(self.loader).__name__,
            "steps": steps,
            "seed": self.seed,
            "precision": self.precision,
        }
        distributed.check_same("Lasso", settings | asdict(lasso), device)

        def take(epoch: int, step: int) -> None:
            cost = graph.cost(graph.legal(pruner.counts))
            seconds = before + time.perf_counter() - started
            snapshot = Snapshot(epoch, step, seconds, strength, lasso.clip, cost.parameters, cost.macs)
            taken.append((pruner.keep(), snapshot))

        if checkpoint is not None and (saved := checkpoints.resumed("Lasso", checkpoint, resume, settings)):
            checkpoints.restore_(model, optim, saved)
            first, before = saved.state["epoch"], saved.state["seconds"]
            strength = saved.state["strength"] if lasso.strength is None else lasso.strength
            amount = strength * lasso.lr / (1 - lasso.momentum)
            for units, record in saved.state["taken"]:
                keep = np.zeros(len(pruner.alive), bool)
                keep[units] = True
                taken.append((keep, Snapshot(**record)))
            alive = np.zeros(len(pruner.alive), bool)
            alive[saved.state["alive"]] = True
            pruner = Pruner(graph, model, lasso, alive, present)
        # Where they do not see one file, only the first one's is up to date.
        distributed.check_same(f"Lasso: {checkpoint}", {"epochs already trained": first}, device)

        def put_down(epoch: int) -> None:
            if checkpoint is not None:
                state = {
                    "settings": settings,
                    "epoch": epoch,
                    "seconds": before + time.perf_counter() - started,
                    "strength": strength,
                    "alive": np.flatnonzero(pruner.keep()).tolist(),
                    "taken": [(np.flatnonzero(keep).tolist(), asdict(s)) for keep, s in taken],
                }
                checkpoints.write(checkpoint, model, optim, state)

        if first == 0:  # finds out now, and not after an epoch, that nothing can be written there
            put_down(0)

        def bury(unit: int, epoch: int, step: int) -> None:
            """One unit at a time, so that a subnet is as large as its target lets it be."""
            pruner.kill_(unit)
            if targets.what != "epochs":
                size = getattr(graph.cost(graph.legal(pruner.counts)), targets.what)
                while len(taken) < len(targets.values) and size <= targets.values[len(taken)]:
                    take(epoch, step)

        total = lasso.epochs * steps
        in_rows = norms_in_rows([model] if self.compile and self.channels_last else [])
        with in_rows, progress_bar(self.progress and distributed.rank() == 0, total) as (show, note):
            for epoch in range(first, lasso.epochs):
                if len(taken) == len(targets.values):
                    break
                losses, seen = torch.zeros((), device=device), 0
                with seeded(self.seed, epoch, device):
                    for step, (x, y) in enumerate(batches_of(self.loader, steps, self.seed, epoch)):
                        x, y = to_device(x, device, self.channels_last), y.to(device)
                        logits = logits_of(run, x, autocast)
                        check_labels("Lasso", epoch, step, logits.shape[1], y)
                        loss = F.cross_entropy(logits, y)
                        optim.zero_grad(set_to_none=True)
                        loss.backward()
                        distributed.average_(p.grad for p in model.parameters() if p.grad is not None)
                        optim.step()
                        losses, seen = losses + loss.detach(), seen + 1
                        for unit in pruner.shrink_(amount):
                            if len(taken) < len(targets.values):
                                bury(unit, epoch + 1, epoch * steps + step + 1)
                        pruner.hold_(optim)
                        if len(taken) == len(targets.values):
                            break
                        show(epoch * steps + step + 1, f"epoch {epoch + 1}/{lasso.epochs}", "")
                buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
                distributed.average_([losses, *buffers])
                mean_loss = float(losses) / seen
                if not math.isfinite(mean_loss):
                    raise ValueError(
                        f"Lasso: epoch {epoch + 1}: got loss {mean_loss}; want a finite one. Lower lr."
                    )
                if targets.what == "epochs" and epoch + 1 in targets.values:
                    take(epoch + 1, (epoch + 1) * steps)
                put_down(epoch + 1)
                cost = graph.cost(graph.legal(pruner.counts))
                norms = pruner.norms().detach()
                eq2 = strength * float(penalty(norms[pruner.free], pruner.tau(norms)[pruner.free]))
                note(
                    f"epoch {epoch + 1}/{lasso.epochs}  loss {mean_loss:.3f} + {eq2:.3f}  "
                    f"{cost.parameters:,} parameters  {cost.macs:,} MACs"
                )
        if len(taken) < len(targets.values):
            cost = graph.cost(graph.legal(pruner.counts))
            raise ValueError(
                f"Lasso: after {lasso.epochs} epochs {cost.parameters} parameters and {cost.macs} MACs are left; "
                f"want {targets.what} {targets.values[len(taken)]:.6g}. Raise epochs or strength={strength:.3g}."
            )
        return taken, before + time.perf_counter() - started


def _checked(graph: Graph) -> Graph:
    """The graph with the groups pinned that a supernet would pin."""
    return Supernet(graph, uniform(graph, (0.5, 1.0))).graph


def _named(graph: Graph, taken: list[tuple[np.ndarray, Snapshot]], seconds: float) -> Sampled:
    """Subnets from the units alive, smallest first and the whole model last."""
    taken = sorted(taken, key=lambda pair: pair[1].macs)
    subnets = [subnet_of(graph, f"subnet{i + 1}", keep) for i, (keep, _) in enumerate(taken)]
    whole = Subnet(f"subnet{len(taken) + 1}", tuple(g.size for g in graph.groups))
    return Sampled.of([*subnets, whole], [snapshot for _, snapshot in taken], seconds)
