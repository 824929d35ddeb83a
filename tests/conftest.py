"""What every test shares: one thread a test process, and the folder of data sets where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Small models run fastest on one thread, and the processes of pytest-xdist do not fight over the cores."""
    try:
        import torch
    except ImportError:  # the running half is tested without torch
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder that RHEOSTAT_DATA names; tests that need data sets are skipped without it."""
    folder = os.environ.get("RHEOSTAT_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RHEOSTAT_DATA does not name a folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One linear layer."""
    import torch

    import rheostat as rh

    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    graph = rh.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    rh.save(rh.Supernet(graph, rh.uniform(graph, (1.0,))), path)
    return path


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512vnni"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_artifact: Path) -> str:
    """An instruction set, in use until the test ends; the test is skipped where the processor lacks it."""
    from rheostat import Engine

    monkeypatch.setenv("RHEOSTAT_ISA", request.param)
    try:
        Engine(small_artifact, 1).close()
    except ValueError as error:
        pytest.skip(str(error))
    return request.param
