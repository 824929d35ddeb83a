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
