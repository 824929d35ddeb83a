"""All recipes, and running several of them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import rheostat as rh
from rheostat_recipes import dense, nonuniform, one_network, shared_weights, uniform
from rheostat_recipes.run import Recipe, Run, keep_freed_memory, runs_dir

RECIPES: tuple[Recipe, ...] = (
    *uniform.RECIPES,
    *nonuniform.RECIPES,
    *dense.RECIPES,
    *shared_weights.RECIPES,
    *one_network.RECIPES,
)


def run_all(
    wanted: Sequence[tuple[str, int]],
    out: Path,
    data_dir: Path | None,
    say: Callable[[str], None] = print,
    recipes: Sequence[Recipe] = RECIPES,
    max_epochs: int | None = None,
) -> list[str]:
    """Run each `(recipe, seed)` in `out / "RECIPE-SEED"`, from where it stopped; return one line for each that failed.

    What recipes share lies in `out`, so that it is made once; with `max_epochs` (see `Run`) all lies in a folder of
    `out` for that length. A run that fails for a reason that its user can change
    (no such data, no room on the disk) does not keep the others from running; anything else is a bug and stops them.
    """
    by_name = {recipe.__name__: recipe for recipe in recipes}
    root = runs_dir(out, False, max_epochs)
    failures = []
    keep_freed_memory()
    for number, (name, seed) in enumerate(wanted, 1):
        say(f"{number} of {len(wanted)}: {name}, seed {seed}")
        torch.compiler.reset()  # its limit is on variants of one class, whichever run they belong to
        try:
            own = root / f"{name}-{seed}"
            by_name[name](Run(own, data_dir, resume=True, seed=seed, shared=root, max_epochs=max_epochs))
        except (ValueError, OSError, ImportError, rh.ArtifactError) as error:
            failures.append(f"{name}, seed {seed}: {' '.join(str(error).split())}")
            say(f"failed: {failures[-1]}")
    return failures
