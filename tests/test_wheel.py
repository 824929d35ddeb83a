"""The wheel: what is in it, and that it runs in an environment with numpy alone."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "rheostat",
        "rheostat_recipes",
        "rheostat-0.1.0.dist-info",
    }
    assert any(name.startswith("rheostat/run/librheostat.") for name in names)
    assert "rheostat/py.typed" in names
    assert "rheostat-0.1.0.dist-info/licenses/LICENSE" in names
    kernels = {name for name in names if name.endswith((".c", ".h"))}
    assert kernels == {f"rheostat/run/mcu/{path.name}" for path in (ROOT / "src/rheostat/run/mcu").iterdir()}
    assert not [name for name in names if "test" in name]
    assert wheel.name.startswith("rheostat-0.1.0-py3-none-")


def test_runs_with_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel], check=True)
    code = """if True:
        import rheostat
        print(rheostat.Engine.__module__, rheostat.cost.__module__, rheostat.choose([1.0, 2.0], 1.5))
        try:
            rheostat.trace
        except ImportError as error:
            print(error)
        try:
            rheostat.Engine("missing.safetensors")
        except (OSError, rheostat.ArtifactError):
            print("missing")
    """
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "rheostat.run.engine rheostat.cost 0",
        'rheostat.trace needs PyTorch: pip install "rheostat[train]"',
        "missing",
    ]
