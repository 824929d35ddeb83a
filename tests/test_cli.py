"""The command line as people and programs use it: in this process where that is enough, in its own where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import rheostat as rh
from cases import CASES
from rheostat import artifact
from rheostat.cli import app
from rheostat_recipes import tables
from rheostat_recipes.data import load
from rheostat_recipes.run import Run
from rheostat_recipes.uniform import digits

WIDE = {"COLUMNS": "200", "TERM": "dumb"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet that has seen some digits."""
    return digits(Run(tmp_path_factory.mktemp("trained"), smoke=True)).artifact


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env=WIDE)
    assert done.exit_code == 0, done.output
    return done.stdout


def mistake(*arguments: object) -> str:
    """The one line that a user's mistake gives."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], env=WIDE)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("rheostat: ")
    return line


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **WIDE},
    )


# ---- verbs ----


def test_help_lists_the_verbs() -> None:
    text = invoke("--help")
    assert text == invoke()
    for verb in ("demo", "train", "eval", "quantize", "inspect", "bench", "export", "table", "figure"):
        assert f" {verb} " in text
    assert "│ dial " not in text


def test_version() -> None:
    assert invoke("--version") == f"rheostat {rh.__version__}\n"


def test_train_writes_artifact_result_and_checkpoint(tmp_path: Path) -> None:
    rows = json.loads(invoke("train", "digits", "--smoke", "--out", tmp_path, "--seed", 2, "--json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "digits-seed2.json",
        "digits.safetensors",
    ]
    record = json.loads((tmp_path / "digits-seed2.json").read_text(encoding="utf-8"))
    assert [row["accuracy"] for row in rows] == [subnet["accuracy"] for subnet in record["subnets"]]
    assert mistake("train", "digits", "--smoke", "--out", tmp_path).endswith("or another --out")
    assert "digits.safetensors" in invoke(
        "train", "digits", "--smoke", "--out", tmp_path, "--seed", 2, "--resume"
    )


def test_train_lists_the_recipes() -> None:
    text = invoke("train")
    for recipe in ("digits", "lenet5_mnist", "resnet20_cifar10_snn", "resnet20_cifar10_distill"):
        assert recipe in text


def test_eval_is_what_pytorch_gets(trained: Path) -> None:
    rows = json.loads(invoke("eval", trained, "--json"))
    images = load("digits")
    x = images.normalized(images.test_images)
    with rh.Engine(trained) as engine:
        for row in rows:
            engine.select(row["subnet"])
            assert row["accuracy"] == np.mean(engine(x).argmax(1) == images.test_labels)
    assert [row["recorded"] for row in rows] == pytest.approx([row["accuracy"] for row in rows], abs=0.01)
    table = invoke("eval", trained, "--threads", 1)
    assert "digits, 898 test images" in table
    assert f"{rows[-1]['accuracy']:.2%}" in table


def test_eval_uses_the_normalisation_of_the_training(trained: Path, tmp_path: Path) -> None:
    program, tensors = artifact.read(trained)
    other = replace(program, provenance={**program.provenance, "mean": "5.0", "std": "0.01"})
    artifact.write(tmp_path / "other.safetensors", other, tensors)
    wrong, right = (
        json.loads(invoke("eval", path, "--json")) for path in (tmp_path / "other.safetensors", trained)
    )
    assert wrong[-1]["accuracy"] < right[-1]["accuracy"] - 0.1


def test_inspect(trained: Path) -> None:
    text = invoke("inspect", trained)
    assert all(f"subnet {name}" in text or f" {name} " in text for name in ("0.25", "0.5", "0.75", "1.0"))
    for words in ("CifarResNet", "layer3.0.conv2", "model output", "data: digits", "167,794"):
        assert words in text
    found = json.loads(invoke("inspect", trained, "--json"))
    assert found["input"] == [1, 8, 8]
    assert [info["name"] for info in found["subnets"]] == ["0.25", "0.5", "0.75", "1.0"]
    assert found["layers"][0] == {"layer": "conv1", "channels": [6, 12, 18, 24]}
    assert [group["pinned"] for group in found["groups"]][-1] == "model output"
    costs = rh.cost(trained)
    assert [info["macs"] for info in found["subnets"]] == [info.macs for info in costs]


def test_inspect_shows_levels(trained: Path, tmp_path: Path) -> None:
    program, tensors = artifact.read(trained)
    levels = np.random.default_rng(0).integers(0, 5, tensors["layer3.0.conv2.weight"].shape).astype(np.uint8)
    pruned = tensors["layer3.0.conv2.weight"] * (levels < 4)
    path = tmp_path / "pruned.safetensors"
    added = {"layer3.0.conv2.weight": pruned, "layer3.0.conv2.weight@levels": levels}
    artifact.write(path, program, {**tensors, **added})
    text = invoke("inspect", path)
    assert str(rh.size_report(path)) in text
    assert "not the engine faster" in text
    (code,) = json.loads(invoke("inspect", path, "--json"))["levels"].values()
    assert code["shape"] == list(levels.shape)
    assert sum(code["counts"]) == (levels < 4).sum()
    assert json.loads(invoke("inspect", trained, "--json"))["levels"] == {}


def test_inspect_says_what_keeps_it_out_of_the_engine(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "group_norm")
    net = rh.Supernet(graph := rh.trace(case.model(), case.inputs()), rh.uniform(graph, (0.5, 1.0))).eval()
    rh.save(net, tmp_path / "net.safetensors")
    text = invoke("inspect", tmp_path / "net.safetensors")
    assert "The engine cannot run it: " in text
    assert "group_norm" in text
    assert "group_norm" in mistake("bench", tmp_path / "net.safetensors")
    assert "group_norm" in mistake("export", tmp_path / "net.safetensors", "--out", tmp_path)


def test_names_with_brackets_are_shown_as_they_are(trained: Path, tmp_path: Path) -> None:
    program, tensors = artifact.read(trained)
    groups = (replace(program.groups[0], pinned="view [N, 512] [red]"), *program.groups[1:])
    whole = replace(groups[0], widths=(groups[0].size,) * 4)
    assert whole.pinned == "view [N, 512] [red]"
    odd = replace(program, model="[/red]", groups=groups, provenance={"note": "[b]bold[/b]"})
    artifact.write(tmp_path / "odd.safetensors", odd, tensors)
    text = invoke("inspect", tmp_path / "odd.safetensors")
    for words in ("[/red]", "view [N, 512] [red]", "[b]bold[/b]"):
        assert words in text


def test_quantize(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    rows = json.loads(invoke("quantize", trained, "--out", out, "--num", 128, "--json"))
    before, after = rh.cost(trained), rh.cost(out)
    assert [row["name"] for row in rows] == [info.name for info in before]
    for row, a, b in zip(rows, before, after, strict=True):
        assert row["accuracy"] == b.accuracy
        assert a.accuracy is not None
        assert b.accuracy is not None
        assert b.accuracy > a.accuracy - 0.02
        assert b.size_bytes < 0.5 * a.size_bytes
    assert "bits_weights: got 5; want 8 or 16" in mistake("quantize", trained, "--out", out, "--bits", 5)


def test_bench(trained: Path) -> None:
    rows = json.loads(invoke("bench", trained, "--threads", 1, "--batch", 2, "--repeats", 20, "--json"))
    assert [row["subnet"] for row in rows] == ["0.25", "0.5", "0.75", "1.0"]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] < 1000 for row in rows)
    assert {(row["batch"], row["threads"]) for row in rows} == {(2, 1)}
    assert "batch 3, all cores, 5 inferences" in invoke("bench", trained, "--batch", 3, "--repeats", 5)


def test_export(trained: Path, tmp_path: Path) -> None:
    printed = invoke("export", trained, "--to", "onnx", "--out", tmp_path / "onnx").splitlines()
    assert [Path(line).name for line in printed] == [
        f"digits-{w}.onnx" for w in ("0.25", "0.5", "0.75", "1.0")
    ]
    for line in printed:
        onnx.checker.check_model(onnx.load(line), full_check=True)


def test_export_c(trained: Path, tmp_path: Path) -> None:
    assert invoke("export", trained, "--to", "c", "--out", tmp_path).startswith(f"{tmp_path / 'net.c'}\n")
    assert (tmp_path / "net.h").exists()
    line = mistake("export", trained, "--to", "c", "--out", tmp_path, "--flash-bytes", 1000)
    assert "more than the 1000 given; ops[0]" in line
    assert "for --to c" in mistake("export", trained, "--out", tmp_path, "--ram-bytes", 1000)


def test_table() -> None:
    text = invoke("table", "dynamic", 1)
    for words in ("S-NN", "0.75x", "88.4 / ", "Yang and Fan"):
        assert words in text
    cells = json.loads(invoke("table", "pruning", 1, "--json"))
    keys = set("row column paper ours unit seeds spread commit hardware notes recipe".split())
    assert all(set(cell) == keys for cell in cells)
    (cell,) = (cell for cell in cells if (cell["row"], cell["column"]) == ("irregular", "SST-2"))
    assert (cell["paper"], cell["unit"]) == (89.3, "%")
    text = invoke("table", "dynamic", 3)
    (row,) = (line for line in text.splitlines() if line.startswith(" S-NN 4 "))
    marks = row.split()[row.split().index("26.83") + 3]
    assert any(f"\n{mark}: paper: convolutions and classifier only" in text for mark in marks)
    assert "43.49 /" in text


def test_table_shows_how_far_seeds_lie_apart(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.79, 0.80, 0.82)):
        subnets = [{"name": "0.25", "parameters": 17326, "accuracy": accuracy}]
        record = {"recipe": "resnet20_cifar10_snn", "seed": seed, "smoke": False, "subnets": subnets}
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
    text = invoke("table", "dynamic", 3, "--results", tmp_path)
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" S-NN 1 "))
    assert row[row.index("80.33") + 1] == "±1.5"
    assert row[row.index("1.73") + 1][0] != "±"  # all seeds alike
    assert "mean of 3 seeds, ± half their range" in text


def test_table_says_what_is_missing_and_how_to_run_it(tmp_path: Path) -> None:
    text = invoke("table", "dynamic", 5, "--seeds", "0,2")
    assert "resnet20_cifar10_distill32, seed 0, 2\n" in text
    assert "rheostat table dynamic 5 --run --data DIR --seeds 0,2\n" in text
    for recipe in ("distill20", "distill32", "distill"):
        subnets = [{"name": w, "accuracy": 0.8} for w in ("0.25", "0.5", "0.75", "1.0")]
        record = {"recipe": f"resnet20_cifar10_{recipe}", "seed": 0, "subnets": subnets}
        record |= {"commit": "abc", "hardware": "a machine", "smoke": False}
        (tmp_path / f"{recipe}.json").write_text(json.dumps(record))
    assert "Not run" not in invoke("table", "dynamic", 5, "--results", tmp_path)
    # Nothing to run: nothing runs.
    assert invoke("table", "dynamic", 5, "--results", tmp_path, "--run").count("80") == 12


def test_table_runs_what_is_missing_and_hides_no_failure(tmp_path: Path) -> None:
    """Without ImageNet every run of Table 2 fails; all are tried, and the table is still shown."""
    flags = ["table", "dynamic", "2", "--run", "--data", str(tmp_path), "--results", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, flags, env=WIDE)
    assert done.exit_code == 1
    recipes = ["resnet50_imagenet_snn_individual", "resnet50_imagenet_snn", "resnet50_imagenet_distill"]
    for number, recipe in enumerate(recipes, 1):
        assert f"{number} of 3: {recipe}, seed 0" in done.stdout
        assert f"rheostat: failed: {recipe}, seed 0: " in done.stderr
    assert "76.1 / –" in done.stdout and "Not run yet:" in done.stdout
    done = CliRunner().invoke(app, [*flags, "--json"], env=WIDE)
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)) == 16


def test_what_is_kept_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = invoke("table", "pruning", 2)
    assert "Not run" not in text
    assert invoke("table", "pruning", 2, "--run") == text


@pytest.mark.parametrize("columns", ["30", "60", "100"])
def test_numbers_are_whole_however_narrow_the_terminal(columns: str) -> None:
    done = CliRunner().invoke(app, ["table", "pruning", "2"], env={"COLUMNS": columns})
    assert {"60.24", "98.94", "81.32"} <= set(done.output.split())
    nine = tables.KEPT / "resnet20_cifar10_nine.safetensors"
    done = CliRunner().invoke(app, ["inspect", str(nine)], env={"COLUMNS": columns})
    assert {"layer1.0.conv1", "subnet9", "42,648,192"} <= set(done.output.split())


def test_interrupted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rheostat_recipes.tables.load_table", interrupt)
    done = CliRunner().invoke(app, ["table", "dynamic", "1"])
    assert (done.exit_code, done.stderr) == (130, "rheostat: interrupted\n")


@pytest.fixture
def pretended(trained: Path, tmp_path: Path) -> Path:
    """Results of the figures' recipes, all with the digits' artifact."""
    (tmp_path / "net.safetensors").write_bytes(trained.read_bytes())
    subnets = [asdict(info) for info in artifact.read_program(trained).subnets]
    recipes = ("snn", "multi_path", "nine", "nine_uniform", "nine_distill20")
    for seed, recipe in enumerate((*recipes, "nine")):
        record = {"recipe": f"resnet20_cifar10_{recipe}", "seed": seed, "subnets": subnets}
        record |= {"artifact": "net.safetensors", "smoke": False}
        (tmp_path / f"{recipe}-{seed}.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("number", [4, 6, 7])
def test_figure(number: int, pretended: Path, tmp_path: Path) -> None:
    flags = ["figure", "dynamic", number, "--out", tmp_path / "figure.svg", "--results", pretended]
    numbers = json.loads(invoke(*flags, "--json"))
    program = artifact.read_program(pretended / "net.safetensors")
    shares = [info.accuracy for info in program.subnets]
    if number == 4:
        assert list(numbers) == ["ResNet-20 on CIFAR-10, Ours-M"]
        assert numbers["ResNet-20 on CIFAR-10, Ours-M"]["conv1"] == [6, 12, 18, 24]
    elif number == 6:
        cpu = numbers["ResNet-20 on CIFAR-10, CPU, 1 image"]
        assert [curve["name"] for curve in cpu] == ["S-NN", "Ours-M"]
        assert all(curve["accuracy"] == shares and min(curve["cost"]) > 0 for curve in cpu)
    else:
        (curves,) = numbers.values()
        assert [curve["name"] for curve in curves] == ["S-NN", "Ours-M", "S-NN with a teacher"]
        assert curves[1]["cost"] == [info.macs / 1e6 for info in program.subnets]
        assert curves[1]["accuracy"] == pytest.approx(shares)
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")
    text = invoke(*flags)
    assert f"{tmp_path / 'figure.svg'}: ResNet-20 on CIFAR-10" in text
    assert ("resnet20_cifar10_group_lasso, seed 0" in text) == (number == 4)


def test_figure_without_results(tmp_path: Path) -> None:
    text = invoke("figure", "dynamic", 7, "--out", tmp_path / "figure.svg", "--results", tmp_path)
    assert "nothing to draw yet" in text
    assert "rheostat figure dynamic 7 --out" in text
    assert not (tmp_path / "figure.svg").exists()
    assert "got dynamic 3; want one of: dynamic 4, " in mistake("figure", "dynamic", 3, "--out", "a.svg")
    assert "--seeds: got '1-3'; want numbers" in mistake("table", "dynamic", 1, "--seeds", "1-3")


def test_a_figure_that_could_not_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    for place, want in (("figure.txt", "want a name that ends in"), ("none/figure.svg", "no such directory")):
        flags = ("--run", "--data", tmp_path, "--results", tmp_path)
        assert want in mistake("figure", "dynamic", 7, "--out", tmp_path / place, *flags)
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.svg").mkdir()
    assert "a folder, or a place" in mistake("figure", "dynamic", 7, "--out", tmp_path / "folder.svg")


def test_half_a_result_is_named(tmp_path: Path) -> None:
    for subnets in (5, [1], [{"macs": 3}]):
        text = json.dumps({"recipe": "lenet5_mnist", "seed": 0, "subnets": subnets})
        (tmp_path / "half.json").write_text(text)
        assert "half.json: not a whole result" in mistake("table", "dynamic", 1, "--results", tmp_path)
    (tmp_path / "half.json").write_text(text.replace('{"macs": 3}', '{"name": "1.0", "accuracy": null}'))
    assert "nothing to draw" in invoke(
        "figure", "dynamic", 7, "--out", tmp_path / "a.svg", "--results", tmp_path
    )
    (tmp_path / "subnets-a.json").write_text("[1]")
    assert "subnets-a.json: not the subnets of a sampling" in mistake(
        "table", "dynamic", 3, "--results", tmp_path
    )


def test_a_batch_beyond_memory_is_one_line(trained: Path) -> None:
    assert "not enough memory" in mistake("bench", trained, "--batch", 10**11, "--repeats", 1)


def test_dial_never_imports_torch(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "dial.json"
    code = """
    import sys
    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError("torch is not installed", name="torch")
    sys.meta_path.insert(0, NoTorch())
    from rheostat.cli import main
    main()
    """
    done = python(code, "dial", trained, "--out", out, "--num", 240)
    assert done.returncode == 0, done.stderr
    assert "█" in done.stdout
    stream = json.loads(out.read_text(encoding="utf-8"))
    turns, expected = stream["turns"], stream["expected_ms"]
    assert len(turns) == 240 and len(expected) == 4
    # The largest that fits, the smallest where none does; on a busy machine a larger one may have been the faster.
    for turn in turns:
        fitting = [k for k in range(4) if expected[k] <= turn["budget_ms"]]
        assert turn["subnet"] == (fitting[-1] if fitting else 0)
    budgets = sorted(turn["budget_ms"] for turn in turns)
    step = max(b - a for a, b in pairwise(budgets))
    assert budgets[0] < min(expected) and budgets[-1] > max(expected)
    assert step < 0.03 * (budgets[-1] - budgets[0])
    used = {turn["subnet"] for turn in turns}
    if all(b - a > step for a, b in pairwise(expected)):
        assert used == {0, 1, 2, 3}
    assert {0, 3} <= used
    # More budget never got a smaller subnet.
    by_budget = sorted(turns, key=lambda turn: turn["budget_ms"])
    assert [turn["subnet"] for turn in by_budget] == sorted(turn["subnet"] for turn in turns)


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rheostat", "demo", "--out", tmp_path / "demo"],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **WIDE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PyTorch in this process: no" in done.stdout
    program = artifact.read_program(tmp_path / "demo" / "digits.safetensors")
    for info in program.subnets:
        assert info.accuracy is not None and info.accuracy > 0.95
        assert info.latency_ms_p50 is not None
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not (tmp_path / "demo" / "checkpoint.safetensors").exists()


# ---- what stays light ----


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["table", "dynamic", "1"]], ids=" ".join
)
def test_without_torch(arguments: list[str]) -> None:
    code = """
    import sys
    try:
        from rheostat.cli import main
        main()
    finally:
        assert not {"torch", "matplotlib", "numpy.random._generator", "onnx"} & set(sys.modules), "heavy import"
    """
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", ["train", "digits", "--smoke"], "train"),
        ("onnx", ["export", "ARTIFACT"], "export"),
        ("typer", ["--help"], "cli"),
        ("sklearn", ["eval", "ARTIFACT"], "demo"),
    ],
)
def test_a_missing_library_names_its_extra(
    missing: str, arguments: list[str], extra: str, trained: Path
) -> None:
    code = "import sys\nsys.modules[sys.argv.pop(1)] = None\nfrom rheostat.cli import main\nmain()"
    done = python(code, missing, *(trained if word == "ARTIFACT" else word for word in arguments))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("rheostat: ")
    assert line.endswith(f'pip install "rheostat[{extra}]"')


# ---- mistakes ----


def test_usage_mistakes() -> None:
    assert "No such command 'trian'" in mistake("trian")
    assert "No such option: --steps" in mistake("train", "digits", "--steps", 3)
    assert "Missing argument 'ARTIFACT'" in mistake("eval")
    assert "Invalid value for 'N'" in mistake("table", "dynamic", "x")
    assert "Invalid value for '--threads'" in mistake("bench", "net.safetensors", "--threads", 0)


def test_mistakes_in_what_is_asked_for(trained: Path, tmp_path: Path) -> None:
    assert mistake("train", "resnet21").startswith(
        "rheostat: train: got recipe 'resnet21'; want one of: digits, "
    )
    assert mistake("export", trained, "--to", "tflite") == "rheostat: --to: got 'tflite'; want onnx or c"
    assert "want one of: dynamic 1, " in mistake("table", "dynamic", 9)
    assert "none: no such directory" in mistake("table", "dynamic", 1, "--results", tmp_path / "none")
    assert "mnist.npz.xz: no such file" in mistake(
        "train", "lenet5_mnist", "--data", tmp_path, "--out", tmp_path / "out"
    )


@pytest.mark.parametrize("verb", ["eval", "inspect", "bench", "export", "dial"])
def test_files_that_are_no_artifacts(verb: str, tmp_path: Path) -> None:
    assert "none.safetensors: cannot be read: No such file" in mistake(verb, tmp_path / "none.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"not an artifact")
    assert "net.safetensors: " in mistake(verb, tmp_path / "net.safetensors")
    assert "want a regular file" in mistake(verb, tmp_path)


def test_artifacts_that_do_not_say_what_they_learnt(trained: Path, tmp_path: Path) -> None:
    program, tensors = artifact.read(trained)
    silent, other = tmp_path / "silent.safetensors", tmp_path / "other.safetensors"
    artifact.write(silent, replace(program, provenance={}), tensors)
    assert "its provenance names no data" in mistake("eval", silent)
    artifact.write(other, replace(program, provenance={"data": "emnist"}), tensors)
    assert "got 'emnist'; want one of: digits, mnist" in mistake("eval", other)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in mistake("train", "digits", "--smoke", "--out", tmp_path / "file")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr("rheostat_recipes.tables.load_table", broken)
    done = CliRunner().invoke(app, ["table", "dynamic", "1"])
    assert isinstance(done.exception, AssertionError)
