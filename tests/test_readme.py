"""The README says what is: its example runs as printed, its commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def example(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return block


def output(code: str, folder: Path) -> list[str]:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_example_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    # One line more, to look at what came out.
    code = example("README.md") + "\nprint(y.shape, y.dtype, (y.argmax(1) == labels).mean() > 0.8)\n"
    assert output(code, tmp_path)[-1] == "(1797, 10) float32 True"
    assert (tmp_path / "digits.safetensors").stat().st_size > 1000


def test_both_ways_to_choose_subnets_run(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    more = "\nfor net in (sampled, slimmed):\n    print(net.nested, min(rh.evaluate(net, held_out).values()) > 0.8)\n"
    more += "print([sampled.cost(k).macs <= share * macs for k, share in enumerate((0.25, 0.6, 1))])\n"
    # Printed but for the milliseconds, which a busy machine may disturb until no try seems to save any. `engine_ms` has
    # a test of its own.
    measured = "cost = rh.engine_ms(np.zeros((32, 1, 8, 8), np.float32))"
    printed = example("docs/subnets.md")
    assert measured in printed
    code = printed.replace(measured, "cost = lambda m: sum(p.numel() for p in m.parameters())") + more
    assert output(code, tmp_path)[-3:] == ["True True", "True True", "[True, True, True]"]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    (commands,) = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [line.split()[:2] for line in commands.splitlines()]
    assert named == [["make", "demo"], ["make", "test"]]
    assert {name for _, name in named} <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_extras_exist() -> None:
    extras = {extra for names in re.findall(r'"rheostat\[([a-z,]+)\]"', README) for extra in names.split(",")}
    assert extras
    assert extras <= set(PYPROJECT["project"]["optional-dependencies"])


def test_requirements_are_those_promised() -> None:
    project = PYPROJECT["project"]
    assert [re.split(r"[<>=]", name)[0] for name in project["dependencies"]] == ["numpy"]
    assert "torch>=2.11,<2.14" in project["optional-dependencies"]["train"]
    named = [name for names in project["optional-dependencies"].values() for name in names]
    assert not any(name.startswith(("torchvision", "timm")) for name in named)


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))],
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
