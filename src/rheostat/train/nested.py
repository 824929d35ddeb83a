"""Train subnets one after the other, each without changing the smaller ones (pruning paper, SW-Train)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rheostat.train.fit import Epoch, fit
from rheostat.train.supernet import Supernet

MODES = ("staged", "joint", "raw", "subset")


def fit_nested(
    net: Supernet,
    loader: Iterable[tuple[Any, Tensor]],
    *,
    epochs: int | Sequence[int],
    mode: str = "staged",
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    warmup: float = 0,
    teacher: nn.Module | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    precision: str = "float32",
    compile: bool = False,
    channels_last: bool = False,
    validation: Iterable[tuple[Any, Tensor]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Epoch]]:
    """Train nested subnets by stages and give the record of each stage (pruning paper, equations 2 to 4).

    mode:
        "staged": the smallest subnet, then each larger one, in whose stage only those weights move that it has and no
            smaller one. Biases and other whole parameters train in the first stage; after its stage
            a subnet's outputs stay the same to the last bit.
        "joint": all subnets in each step (`fit`; dynamic paper, equation 5).
        "raw": the first stage alone. Larger subnets add the weights as `net` got them: the paper's literal equations.
        "subset": no training; every subnet is the masked net as it is.
    epochs: of each stage, one number for all or one for each.
    checkpoint: stage k writes `checkpoint` with `-stage{k}` before the suffix; with `resume=True` finished stages are
        read, and the one that was cut short goes on.

    All other arguments are those of `fit`, for every stage. Norm statistics are private; where a subnet was not trained
    ("raw", "subset"), `recalibrate` measures them. Raises ValueError for an unknown mode and what `fit` raises.

    >>> stages = fit_nested(net, loader, epochs=10, validation=test)  # doctest: +SKIP
    >>> [stage[-1].validation for stage in stages]  # doctest: +SKIP
    [{'0.4': 0.989}, {'0.6': 0.99}, {'0.8': 0.99}]
    """
    if not isinstance(net, Supernet):
        raise ValueError(f"fit_nested: got a {type(net).__name__}; want a Supernet")
    if mode not in MODES:
        raise ValueError(f"fit_nested: got mode={mode!r}; want one of {', '.join(MODES)}")
    own = [range(len(net))] if mode == "joint" else [[k] for k in range(len(net))]
    stages = own[: {"raw": 1, "subset": 0}.get(mode)]
    lengths = list(epochs) if isinstance(epochs, Iterable) else [epochs] * len(stages)
    if len(lengths) != len(stages):
        raise ValueError(
            f"fit_nested: got epochs={epochs}; want one number, or one for each of {len(stages)} stages"
        )
    history = []
    try:
        for k, (subnets, length) in enumerate(zip(stages, lengths, strict=True)):
            net.freeze_except_(None if mode == "joint" else k)
            history.append(
                fit(
                    net,
                    loader,
                    epochs=length,
                    lr=lr,
                    weight_decay=weight_decay,
                    optimizer=optimizer,
                    warmup=warmup,
                    teacher=teacher,
                    distill=distill,
                    temperature=temperature,
                    subnets=subnets,
                    precision=precision,
                    compile=compile,
                    channels_last=channels_last,
                    validation=validation,
                    checkpoint=None if checkpoint is None else _of_stage(Path(checkpoint), k),
                    resume=resume,
                    seed=seed + k,
                    progress=progress,
                )
            )
    finally:
        net.freeze_except_(None)
    return history


def _of_stage(checkpoint: Path, k: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-stage{k}{checkpoint.suffix}")
