"""Pruning while training: ADMM, which pulls weights towards their masks before they are cut; the gradual schedule."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from rheostat.spec import NM, Element, Granularity, Kernel, Pattern
from rheostat.train import checkpoint as checkpoints
from rheostat.train import distributed
from rheostat.train.fit import fit
from rheostat.train.graph import Graph
from rheostat.train.loop import decay_groups, progress_bar, steps_of
from rheostat.train.masks import Cut, Levels, cubic, natural, planned
from rheostat.train.sample import uniform
from rheostat.train.supernet import Supernet


@dataclass(frozen=True)
class Update:
    """One update of Z and U, and the `seconds` of the epochs before it; `loss` and `accuracy` are those of the last.

    primal: `||W - Z|| / ||W||` of each parameter: how far its weights are from the constraint.
    dual: `rho * ||Z - Z_before|| / ||W||`: how far the constraint has moved.
    churn: the fraction of the mask's bits that have changed.
    Of a parameter with two constraints each is the larger number.
    """

    rho: float
    seconds: float
    primal: dict[str, float]
    dual: dict[str, float]
    churn: dict[str, float]
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `admm` found: a graph whose model has the trained weights, all of them; which to keep; how it went."""

    graph: Graph
    levels: Levels
    history: tuple[Update, ...]


def admm(
    graph: Graph,
    loader: Iterable[tuple[Any, Tensor]],
    sparsity: float | Mapping[str, float],
    granularity: Granularity | Mapping[str, Granularity] = Element(),
    *,
    connectivity: float = 0.0,
    skip: Collection[str] = (),
    balanced: bool = False,
    rho: Sequence[float] = (1e-3, 1e-2, 1e-1),
    updates: int = 3,
    epochs: int = 3,
    tolerance: float = 1e-2,
    decoupled: bool = False,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    """Train a copy of the model towards weights that a mask takes nothing from, and give that mask (Zhang et al. 2018).

    To minimise f(W) where W must have the structure: train on `f(W) + rho / 2 ||W - Z + U||^2`, then project, `Z = W +
    U` under its mask, and add up what is missing, `U += W - Z`. In the end W has nearly the structure. What comes back
    is W and its mask, to be trained on with `Supernet(found.graph, levels=found.levels)` and `fit`.

    sparsity, granularity, skip: as in `levels`, of one subnet. `Pattern("natural")` is settled on the first weights.
    connectivity: a second constraint, with a Z and U of its own, on convolutions: the fraction of kernels that each
        filter loses as well (pattern and connectivity pruning).
    balanced: drop the same number in each filter.
    rho: one value after the other; when it changes, U is rescaled, so that `rho * U` does not.
    updates: of Z and U with each value.
    epochs: of training before each update, by `fit`; lr, momentum, weight_decay, optimizer, precision, channels_last
        are its own, and the learning rate starts again at each. Constrained weights do not decay.
    tolerance: it is over when all primal and dual residuals are below it.
    decoupled: `W -= lr * rho * (W - Z + U)` after the optimizer's step, not part of the gradient: what adaptive
        optimizers such as Adam need, which would rescale it.
    checkpoint: a file written after each update. With `resume=True` training goes on from it, or starts when there is
        none; rho, updates and tolerance may have changed.

    Raises ValueError as `levels` and `fit` do.

    >>> found = admm(graph, loader, 0.9, skip=("fc3.weight",))  # doctest: +SKIP
    >>> net = Supernet(found.graph, levels=found.levels)  # doctest: +SKIP
    """
    _check(rho, updates, epochs, tolerance, connectivity)
    net = Supernet(graph, uniform(graph, (1.0,)))
    distributed.broadcast_(net)
    trained = replace(net.graph, model=net.shared)
    cuts = {n: (s,) for n, s in sparsity.items()} if isinstance(sparsity, Mapping) else (sparsity,)
    plan = planned("admm", trained, cuts, granularity, skip)
    weights = {name: net.shared.get_parameter(name) for name in plan}
    if frozen := [name for name, weight in weights.items() if not weight.requires_grad]:
        raise ValueError(
            f"admm: {frozen[0]}: got requires_grad=False; want weights that train, or skip this one"
        )
    pairs = {name: [Pair(f"admm: {name}", weights[name], cut, balanced)] for name, cut in plan.items()}
    for name, cut in plan.items():
        if connectivity > 0 and weights[name].dim() > 2:
            kernels = Cut(Kernel(), (connectivity,), cut.filter_dim)
            pairs[name].append(Pair(f"admm: {name}", weights[name], kernels, True))

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Constrained weights do not decay: that would pull them away from Z."""
        held = {id(weight) for weight in weights.values()}
        free = [p for p in groups[0]["params"] if id(p) not in held]
        groups = [
            {**groups[0], "params": free},
            {**groups[1], "params": [*groups[1]["params"], *weights.values()]},
        ]
        if optimizer is not None:
            return optimizer(groups)
        groups[0]["weight_decay"] = weight_decay
        return torch.optim.SGD(groups, lr, momentum, nesterov=momentum > 0)

    made = build(decay_groups(net, {}))
    options = [{name: value for name, value in g.items() if name != "params"} for g in made.param_groups]
    settings = {
        "cuts": {name: [str(pair.cut) for pair in own] for name, own in pairs.items()},
        "balanced": balanced,
        "steps": steps_of(loader),
        "epochs": epochs,
        "decoupled": decoupled,
        "optimizer": [type(made).__name__, *options],
        "precision": precision,
        "seed": seed,
    }
    state = nn.ModuleList([net.shared, *(pair for own in pairs.values() for pair in own)])
    history = _opened(checkpoint, resume, state, settings)
    (name_of_all,) = net.names
    with progress_bar(progress and distributed.rank() == 0, len(rho) * updates) as (show, note):
        while (now := _next_rho(history, rho, updates, tolerance)) is not None:
            for pair in (pair for own in pairs.values() for pair in own):
                pair.u *= (history[-1].rho if history else now) / now
            show(len(history), f"update {len(history) + 1}/{len(rho) * updates}", f"rho {now:g}")
            before, after = _penalty(weights, pairs, now, decoupled)
            trained_epochs = fit(
                net,
                _Later(loader, len(history) * epochs),
                epochs=epochs,
                lr=lr,
                optimizer=build,
                precision=precision,
                channels_last=channels_last,
                seed=seed + len(history),
                before_step=before,
                after_step=after,
                progress=False,
            )
            seconds, last = sum(epoch.seconds for epoch in trained_epochs), trained_epochs[-1]
            moved = {
                name: [pair.update_(weight, now) for pair in pairs[name]] for name, weight in weights.items()
            }
            primal, dual, churn = (
                {name: max(numbers[i] for numbers in own) for name, own in moved.items()} for i in range(3)
            )
            history.append(
                Update(now, seconds, primal, dual, churn, last.loss[name_of_all], last.accuracy[name_of_all])
            )
            if checkpoint is not None:
                _write(checkpoint, state, settings, history)
            note(
                f"update {len(history)}  rho {now:g}  loss {last.loss[name_of_all]:.3f}  largest primal residual "
                f"{max(primal.values()):.4f}, dual {max(dual.values()):.4f}, churn {max(churn.values()):.4f}"
            )
    net.zero_grad(set_to_none=True)
    for ours, theirs in zip(net.shared.modules(), graph.model.modules(), strict=True):
        ours.training = theirs.training
    masks = {name: _hard(weight.detach(), pairs[name]) for name, weight in weights.items()}
    kept = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    return Pruned(trained, Levels.from_masks((f"{kept:.2g}",), [masks]), tuple(history))


class Pair(nn.Module):
    """One constraint on one weight: Z, which satisfies it, the scaled dual U, and the mask of Z."""

    z: Tensor
    u: Tensor
    kept: Tensor

    def __init__(self, where: str, weight: Tensor, cut: Cut, balanced: bool) -> None:
        super().__init__()
        weight = weight.detach()
        if (
            isinstance(cut.granularity, Pattern)
            and cut.granularity.patterns == "natural"
            and weight.dim() > 2
        ):
            # A set that moved with the weights would be no constraint.
            filters_first = weight.movedim(cut.filter_dim, 0)
            num_cells = filters_first[0, 0].numel()
            num_kept = num_cells - round(cut.sparsity[0] * num_cells)
            patterns = natural(filters_first, num_kept, cut.granularity.num_patterns)
            cut = replace(cut, granularity=Pattern(patterns))
        self.where, self.cut, self.balanced = where, cut, balanced
        self.register_buffer("kept", self.mask(weight))
        self.register_buffer("z", weight * self.kept)
        self.register_buffer("u", torch.zeros_like(weight))

    def mask(self, weight: Tensor) -> Tensor:
        """Where the projection of a weight onto the constraint is not zero."""
        return self.cut.levels(self.where, weight.abs(), self.balanced) == 0

    def pull(self, weight: Tensor) -> Tensor:
        """The gradient of `1/2 ||W - Z + U||^2`."""
        return weight - self.z + self.u

    @torch.no_grad()
    def update_(self, weight: Tensor, rho: float) -> tuple[float, float, float]:
        """Project W + U to Z, add what W misses to U, and give primal and dual residual and churn."""
        before, kept = self.z, self.mask(weight + self.u)
        churn = float((kept != self.kept).float().mean())
        self.kept, self.z = kept, (weight + self.u) * kept
        self.u += weight - self.z
        norm = max(float(weight.norm()), torch.finfo(torch.float32).tiny)
        return float((weight - self.z).norm()) / norm, rho * float((self.z - before).norm()) / norm, churn


def _hard(weight: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The mask of all constraints: each chooses among what the ones before it leave."""
    kept = torch.ones_like(weight, dtype=torch.bool)
    for pair in pairs:
        kept &= pair.mask(weight * kept)
    return kept


def _penalty(
    weights: Mapping[str, Tensor], pairs: Mapping[str, Sequence[Pair]], rho: float, decoupled: bool
) -> tuple[Callable[[int, float], None] | None, Callable[[int, float], None] | None]:
    """What `fit` calls before and after the optimizer's step."""

    @torch.no_grad()
    def add_to_gradients_(_step: int, _lr: float) -> None:
        for name, weight in weights.items():
            for pair in pairs[name]:
                assert weight.grad is not None
                weight.grad.add_(pair.pull(weight), alpha=rho)

    @torch.no_grad()
    def move_weights_(_step: int, lr: float) -> None:
        for name, weight in weights.items():
            pulls = [pair.pull(weight) for pair in pairs[name]]
            for pull in pulls:
                weight.sub_(pull, alpha=lr * rho)

    return (None, move_weights_) if decoupled else (add_to_gradients_, None)


def _next_rho(
    history: Sequence[Update], rho: Sequence[float], updates: int, tolerance: float
) -> float | None:
    """The rho of the next W-step, or None at the end; it follows from the history, so that resuming needs no more."""
    if history and max(*history[-1].primal.values(), *history[-1].dual.values()) < tolerance:
        return None
    index = len(history) // updates
    return rho[index] if index < len(rho) else None


class _Later:
    """A loader for `fit` whose epochs are counted on from `first`, so that each update sees batches of its own."""

    def __init__(self, loader: Iterable[tuple[Any, Tensor]], first: int) -> None:
        self.loader, self.first = loader, first
        self.generator = getattr(loader, "generator", None)

    def __len__(self) -> int:
        return steps_of(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader, or the sampler of a `DataLoader`."""
        for source in (self.loader, getattr(self.loader, "sampler", None)):
            if callable(set_epoch := getattr(source, "set_epoch", None)):
                set_epoch(self.first + epoch)


def _opened(
    path: str | os.PathLike[str] | None, resume: bool, state: nn.Module, settings: dict[str, Any]
) -> list[Update]:
    """The updates already made, and the state as it was after them; or a first checkpoint of none."""
    if path is None:
        return []
    saved = checkpoints.resumed("admm", path, resume, settings)
    # Where they do not see one file, only the first one's is up to date.
    made = {"updates already made": 0 if saved is None else len(saved.state["history"])}
    distributed.check_same(f"admm: {path}", made, next(state.parameters()).device)
    if saved is None:
        # Also finds out now, and not after an update, that nothing can be written there.
        _write(path, state, settings, [])
        return []
    checkpoints.restore_(state, _stateless(state), saved)
    return [Update(**record) for record in saved.state["history"]]


def _write(
    path: str | os.PathLike[str], state: nn.Module, settings: dict[str, Any], history: Sequence[Update]
) -> None:
    records = [asdict(record) for record in history]
    checkpoints.write(path, state, _stateless(state), {"settings": settings, "history": records})


def _stateless(state: nn.Module) -> torch.optim.Optimizer:
    """Every W-step starts an optimizer of its own, so checkpoints between them hold nothing of one."""
    return torch.optim.SGD(state.parameters(), lr=0.0)


def _check(rho: Sequence[float], updates: int, epochs: int, tolerance: float, connectivity: float) -> None:
    rules = [
        (
            isinstance(rho, Sequence) and len(rho) > 0 and all(r > 0 for r in rho),
            f"rho={rho}",
            "one or more above 0, such as (1e-3, 1e-2, 1e-1)",
        ),
        (isinstance(updates, Integral) and updates >= 1, f"updates={updates}", "1 or more"),
        (isinstance(epochs, Integral) and epochs >= 1, f"epochs={epochs}", "1 or more"),
        (tolerance >= 0, f"tolerance={tolerance}", "0 or more"),
        (
            0 <= connectivity < 1,
            f"connectivity={connectivity}",
            "0 to below 1, the fraction of kernels removed",
        ),
    ]
    for good, got, want in rules:
        if not good:
            raise ValueError(f"admm: got {got}; want {want}")


# --- gradual pruning --------------------------------------------------------------------------------------------------


def gradual(
    net: Supernet,
    sparsity: float | Mapping[str, float],
    granularity: Granularity | Mapping[str, Granularity] = Element(),
    *,
    num_steps: int,
    start: float = 0.0,
    every: int = 100,
    skip: Collection[str] = (),
    balanced: bool = False,
) -> Callable[[int, float], None]:
    """What `fit(net, ..., after_step=)` calls to prune while it trains, along the cubic schedule (Zhu & Gupta 2017).

    Every `every` steps the weights are ranked by magnitude and the smallest set to zero, of which a fraction grows from
    `start` (where that is less) to `sparsity` within `num_steps`; they stay zero until the next ranking. Afterwards
    `levels` of the trained model finds the same weights. A resumed run ranks anew at its first step.

    sparsity, granularity, skip, balanced: as in `admm`; not for patterns of four cells or N:M, which cannot grow.

    >>> prune = gradual(net, 0.9, num_steps=1000)
    >>> fit(net, loader, epochs=10, after_step=prune)  # doctest: +SKIP
    """
    if not isinstance(net, Supernet):
        raise ValueError(f"gradual: got a {type(net).__name__}; want a Supernet")
    if num_steps < 1 or every < 1 or not 0 <= start < 1:
        raise ValueError(
            f"gradual: got num_steps={num_steps}, every={every}, start={start}; want 1 or more, 1 or more, 0 to below 1"
        )
    cuts = {n: (s,) for n, s in sparsity.items()} if isinstance(sparsity, Mapping) else (sparsity,)
    plan = planned("gradual", replace(net.graph, model=net.shared), cuts, granularity, skip)
    for name, cut in plan.items():
        own = cut.granularity
        if isinstance(own, NM) or (isinstance(own, Pattern) and own.patterns not in ("rows", "columns")):
            raise ValueError(
                f"gradual: {name}: got {own}, which keeps one number of cells; want one that may grow"
            )
    weights = {name: net.shared.get_parameter(name) for name in plan}
    for name, cut in plan.items():  # finds out now what cannot be reached
        cut.levels(f"gradual: {name}", weights[name].detach().abs(), balanced)
    masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def prune_(step: int, _lr: float) -> None:
        for name, mask in masks.items():
            weights[name].mul_(mask)
        done = step + 1
        if not masks or done == num_steps or (done < num_steps and done % every == 0):
            for name, cut in plan.items():
                first, last = min(start, cut.sparsity[0]), cut.sparsity[0]
                now = replace(cut, sparsity=(cubic(done, num_steps, first, last),))
                masks[name] = now.levels(f"gradual: {name}", weights[name].abs(), balanced) == 0
                weights[name].mul_(masks[name])

    return prune_
