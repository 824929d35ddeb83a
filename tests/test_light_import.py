"""The running half needs numpy alone: fresh interpreters, some of which cannot import torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rheostat as rh

# An entry of None makes `import name` fail with ModuleNotFoundError, as if it were not installed.
BLOCK = """
import sys
for name in ("torch", "safetensors", "rich", "typer", "matplotlib", "onnx", "sklearn", "pandas", "scipy"):
    sys.modules[name] = None
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("light") / "net.safetensors"
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    graph = rh.trace(model, torch.randn(1, 3, 8, 8))
    rh.save(rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0))).eval(), path)
    return path


def test_import_brings_numpy_and_nothing_else() -> None:
    code = """
    import sys
    import numpy
    before = set(sys.modules)
    import rheostat
    print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
    """
    loaded = set(run(code).split()) - {"numpy"}
    assert loaded == {"rheostat"}


def test_engine_never_imports_torch(artifact: Path) -> None:
    code = """
    import sys
    import numpy, rheostat
    engine = rheostat.Engine(sys.argv[1])
    engine.select("0.5")
    y = engine(numpy.ones((2, 3, 8, 8), numpy.float32))
    print(rheostat.cost(sys.argv[1]), rheostat.choose, rheostat.latency, rheostat.SubnetInfo, y.shape)
    assert "torch" not in sys.modules
    assert not any(name.startswith("rheostat.train") for name in sys.modules)
    """
    assert "(2, 4)" in run(code, str(artifact))


def test_engine_without_torch_gives_the_same_numbers(artifact: Path) -> None:
    code = BLOCK + textwrap.dedent("""
    import numpy, rheostat
    engine = rheostat.Engine(sys.argv[1])
    for name in engine.subnets:
        engine.select(name)
        print(*engine(numpy.ones((1, 3, 8, 8), numpy.float32)).ravel().view(numpy.uint32))
    """)
    printed = run(code, str(artifact)).splitlines()
    engine = rh.Engine(artifact)
    for name, line in zip(engine.subnets, printed, strict=True):
        engine.select(name)
        here = engine(np.ones((1, 3, 8, 8), np.float32)).ravel()
        assert here.view(np.uint32).tolist() == [int(word) for word in line.split()]


@pytest.mark.parametrize("name", ["trace", "Supernet", "uniform", "fit", "save", "ImageLoader"])
def test_without_torch_the_message_names_the_extra(name: str) -> None:
    code = BLOCK + textwrap.dedent("""
    import rheostat
    try:
        getattr(rheostat, sys.argv[1])
    except ImportError as error:
        print(error)
    """)
    assert run(code, name).strip() == f'rheostat.{name} needs PyTorch: pip install "rheostat[train]"'


def test_from_import_gives_the_same_message() -> None:
    code = BLOCK + "try:\n    from rheostat import trace\nexcept ImportError as error:\n    print(error)\n"
    assert run(code).strip() == 'rheostat.trace needs PyTorch: pip install "rheostat[train]"'
