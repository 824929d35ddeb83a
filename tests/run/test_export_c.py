"""The exported C against the engine, op by op and model by model, under sanitizers; then power failures."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import integer
import rheostat as rh
from cases import CASES, Case, lived_in
from random_nets import random_nets
from rheostat import artifact
from rheostat.program import ACTIVATIONS, Activation, Conv2d, Linear, Segment, Value, reads
from rheostat.run.export_c import CSource, export_c, to_numbers
from rheostat.spec import Quant
from run.test_engine import ACTIVATE, PROGRAMS, Net, activations, error, whole, with_levels, with_torch

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

MODELS = [c for c in CASES if c.engine and not c.slow]
INT8 = Quant(8, 8)
WIDE = [Quant(16, 16), Quant(8, 16), Quant(16, 8)]


def case_id(x: Any) -> str:
    return (
        x.name if isinstance(x, Case) else "float" if x is None else f"w{x.bits_weights}a{x.bits_activations}"
    )


def tuples(y: Any) -> tuple[np.ndarray, ...]:
    return y if isinstance(y, tuple) else (y,)


def supernet(case: Case) -> rh.Supernet:
    return rh.Supernet(graph := rh.trace(case.model(), case.example()), rh.uniform(graph, (0.25, 0.5, 1.0)))


def tiny(path: Path, quant: Quant | None = INT8) -> Path:
    """Two convolutions and two linears at three widths, on random inputs [1, 8, 8]."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    net = rh.Supernet(graph := rh.trace(model, torch.randn(1, 1, 8, 8)), rh.uniform(graph, (0.5, 0.75, 1.0)))
    if quant is None:
        rh.save(net.eval(), path)
    else:
        rh.quantize(net, [torch.randn(8, 1, 8, 8)], quant).save(path)
    return path


def perceptron(path: Path) -> Path:
    """Two linears: the plan puts the output where the input was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    net = rh.Supernet(graph := rh.trace(model, torch.randn(1, 6)), rh.uniform(graph, (0.25, 0.5, 1.0)))
    rh.quantize(net, [torch.randn(8, 6)]).save(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CSource:
    folder = tmp_path_factory.mktemp("tiny")
    return export_c(tiny(folder / "tiny.safetensors"), folder / "c")


def agrees(path: Path, folder: Path, *inputs: np.ndarray, tolerance: float = 1e-5) -> None:
    """Sanitized C gives what the engine gives in every subnet: equal integers, floats within `tolerance`."""
    source = export_c(path, folder, inputs[0][:1])
    program = source.compile(flags=("-O1",), sanitize=True)
    assert int(subprocess.run([program], capture_output=True, check=True).stdout) == 0
    with rh.Engine(path, threads=1) as engine:
        for k in range(len(engine.subnets)):
            engine.select(k)
            for x in inputs:
                for got, want in zip(tuples(source.run(program, x, k)), tuples(engine(x)), strict=True):
                    assert got.dtype == want.dtype == np.float32
                    if source.program.quant is not None:
                        np.testing.assert_array_equal(got, want)
                    else:
                        assert error(got, torch.from_numpy(want)) < tolerance, k


# ---- one arithmetic ----


@pytest.mark.parametrize("case", MODELS, ids=case_id)
@pytest.mark.parametrize("quant", [None, Quant(8, 8)], ids=case_id)
def test_models_agree_with_the_engine(case: Case, quant: Quant | None, tmp_path: Path) -> None:
    net, x = supernet(case), case.inputs(1)
    path = tmp_path / "net.safetensors"
    if quant is None:
        rh.save(net.eval(), path)
    else:
        rh.quantize(net, [x], quant).save(path)
    extreme = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0]).repeat(
        x.numel() // 7 + 1
    )
    inputs = [case.inputs(2), 50 * case.inputs(3)]
    if quant is not None:
        inputs.append(extreme[: x.numel()].view(x.shape))
    agrees(path, tmp_path / "c", *(i.numpy() for i in inputs))


@pytest.mark.parametrize("quant", WIDE, ids=case_id)
@pytest.mark.parametrize("name", ["lenet", "densenet", "resnext"])
def test_wide_integers_agree_with_the_engine(name: str, quant: Quant, tmp_path: Path) -> None:
    case = next(c for c in MODELS if c.name == name)
    rh.quantize(supernet(case), [case.inputs(1)], quant).save(tmp_path / "net.safetensors")
    agrees(tmp_path / "net.safetensors", tmp_path / "c", case.inputs(2).numpy())


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda f: f.__name__)
def test_every_op_agrees_with_pytorch(make: Callable[[], Net], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make()
    program = net.save(tmp_path / "net.safetensors")
    source = export_c(tmp_path / "net.safetensors", tmp_path / "c")
    host = source.compile(flags=("-O1",), sanitize=True)
    x = torch.randn(3, *program.input.shape)
    for k in range(3):
        want = with_torch(program, net.tensors, k, x)
        for a, b in zip(tuples(source.run(host, x.numpy(), k)), want, strict=True):
            assert error(a, b) < 1e-5, k


@pytest.mark.parametrize(
    "make", [make for make in PROGRAMS if make is not activations], ids=lambda f: f.__name__
)
def test_every_level_agrees_with_pytorch(make: Callable[[], Net], tmp_path: Path) -> None:
    """Widths and levels together; with half of the layers pruned, dense and pruned rows in one net."""
    torch.manual_seed(0)
    net = make().level(0.5 if make.__name__ in ("concat", "squeeze_excite") else 1.0)
    program = net.save(tmp_path / "net.safetensors")
    source = export_c(tmp_path / "net.safetensors", tmp_path / "c")
    host = source.compile(flags=("-O1",), sanitize=True)
    x = torch.randn(3, *program.input.shape)
    for k in range(3):
        for a, b in zip(
            tuples(source.run(host, x.numpy(), k)), with_torch(program, net.tensors, k, x), strict=True
        ):
            assert error(a, b) < 1e-5, k


@pytest.mark.parametrize(
    ("name", "quant"),
    [("lenet", INT8), ("lenet", Quant(16, 16)), ("mobilenet", INT8), ("mobilenet", Quant(16, 8))],
)
def test_levels_of_integers_agree_on_every_bit(name: str, quant: Quant, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    quantized(next(c for c in MODELS if c.name == name), quant, path)
    agrees(path, tmp_path / "c", next(c for c in MODELS if c.name == name).inputs(2).numpy())


def quantized(case: Case, quant: Quant, path: Path) -> None:
    """The case at three widths, quantised, with random levels for every weight."""
    q = rh.quantize(supernet(case), [case.inputs(1)], quant)
    weights = {op.weight for op in q.program.ops or () if isinstance(op, (Conv2d, Linear))}
    artifact.write(path, q.program, with_levels(dict(q.tensors), weights, 3))


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=random_nets(), data=st.data())
def test_random_networks_agree(net: nn.Module, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 3, 6, 6)
    folder = tmp_path_factory.mktemp("random")
    supernet = rh.Supernet(graph := rh.trace(lived_in(net, x), x), rh.uniform(graph, (0.4, 1.0)))
    rh.save(supernet.eval(), folder / "float.safetensors")
    if artifact.read_program(folder / "float.safetensors").ops is None:
        return
    agrees(folder / "float.safetensors", folder / "c", x.numpy())
    rh.quantize(supernet, [x]).save(folder / "int.safetensors")
    agrees(folder / "int.safetensors", folder / "c", x.numpy())


def test_activations_over_their_whole_range(tmp_path: Path) -> None:
    net = Net([Value(whole(1024), ())])
    net.outputs = tuple(net.then(Activation, 0, net.values[0], name) for name in ACTIVATIONS)
    net.save(tmp_path / "net.safetensors")
    far = np.geomspace(1e-12, 1e3, 500)
    x = np.concatenate([far, -far, [np.nan, np.inf, -np.inf, 0.0, -0.0, 88.7, -103.0, 5e37], np.zeros(16)])
    source = export_c(tmp_path / "net.safetensors", tmp_path / "c")
    got = source.run(source.compile(), x.astype(np.float32)[None], 0)
    for name, y in zip(ACTIVATIONS, got, strict=True):
        want = ACTIVATE[name](torch.from_numpy(x.astype(np.float32)).double()).numpy()
        want = np.where(np.abs(want) > np.finfo(np.float32).max, np.copysign(np.inf, want), want)
        inexact = name.startswith("gelu")  # 1 + erf(x) to 3e-7
        np.testing.assert_allclose(y[0], want, rtol=2e-6, atol=1e-6 if inexact else 1e-37, err_msg=name)


def test_integers_are_those_of_the_specification(source: CSource, tmp_path: Path) -> None:
    """Against numpy written from docs/quant.md, which knows neither the engine nor this C."""
    program, tensors = artifact.read(source.folder.parent / "tiny.safetensors")
    x = np.random.default_rng(1).normal(size=(50, 1, 8, 8)).astype(np.float32)
    host = source.compile(sanitize=True)
    for k in range(3):
        np.testing.assert_array_equal(source.run(host, x, k), integer.run(program, tensors, k, x)[0])


@pytest.mark.slow
def test_accuracy_on_mnist(data: Path, tmp_path: Path) -> None:
    """10,000 images in exact integer arithmetic: the engine's answers, subnet by subnet."""
    from rheostat_recipes.data import load

    images = load("mnist", data)
    x = images.normalized(images.test_images)
    trained = Path(__file__).parents[2] / "recipes/rheostat_recipes/results/lenet5_mnist.safetensors"
    calibration = torch.from_numpy(images.normalized(images.train_images[:512]))
    rh.quantize(trained, calibration.split(64)).save(tmp_path / "lenet.safetensors")
    source = export_c(tmp_path / "lenet.safetensors", tmp_path / "c")
    host = source.compile()
    with rh.Engine(tmp_path / "lenet.safetensors") as engine:
        for k in range(len(engine.subnets)):
            engine.select(k)
            got = source.run(host, x, k)
            np.testing.assert_array_equal(got, engine(x))
            assert np.mean(tuples(got)[0].argmax(1) == images.test_labels) > 0.975


# ---- what the C is made of ----


def test_golden_vectors_pass_and_bite(source: CSource, tmp_path: Path) -> None:
    source.check()
    copied = replace(source, folder=tmp_path / "c")
    shutil.copytree(source.folder, copied.folder)
    text = (copied.folder / "net.c").read_text()
    first = text.index("static const int8_t weight")
    (copied.folder / "net.c").write_text(text[:first] + text[first:].replace("{\n    ", "{\n    7 + ", 1))
    with pytest.raises(ValueError, match=r"net_host_sanitized: [1-9]\d* outputs differ"):
        copied.check()


@pytest.mark.parametrize("quant", [None, Quant(8, 8), Quant(16, 16)], ids=case_id)
@pytest.mark.parametrize("resume", [False, True])
def test_calls_nothing_but_memcpy(quant: Quant | None, resume: bool, tmp_path: Path) -> None:
    folder = export_c(tiny(tmp_path / "net.safetensors", quant), tmp_path).folder
    flags = ["-std=c99", "-O2", "-ffreestanding", *(["-DNET_RESUME"] if resume else [])]
    subprocess.run(["cc", *flags, "-c", folder / "net.c", "-o", folder / "net.o"], check=True)
    listed = subprocess.run(["nm", "-u", folder / "net.o"], capture_output=True, text=True, check=True).stdout
    assert set(listed.split()) - {"U"} <= {"memcpy", "net_nvm_read", "net_nvm_write", "_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="needs -mgeneral-regs-only")
def test_no_float_where_the_artifact_holds_integers(tmp_path: Path) -> None:
    for quant, works in ((Quant(8, 8), True), (Quant(16, 16), True), (None, False)):
        folder = export_c(tiny(tmp_path / "net.safetensors", quant), tmp_path).folder
        command = ["cc", "-mgeneral-regs-only", "-c", folder / "net.c", "-o", folder / "net.o"]
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) == works, quant


def test_sizes_are_those_of_the_object_file(source: CSource) -> None:
    """Activations exactly; constants up to the structures that describe the layers."""
    subprocess.run(
        ["cc", "-std=c99", "-O2", "-c", source.folder / "net.c", "-o", source.folder / "net.o"], check=True
    )
    listed = subprocess.run(
        ["nm", "-S", "-t", "d", source.folder / "net.o"], capture_output=True, text=True, check=True
    ).stdout
    sizes = {line.split()[3]: int(line.split()[1]) for line in listed.splitlines() if len(line.split()) == 4}
    assert sizes["net_arena"] == source.arena_bytes
    assert sizes["net_column"] == source.column_bytes
    constants = sum(
        n for name, n in sizes.items() if name.startswith(("weight", "multiplier", "bias", "runs"))
    )
    assert constants == sum(source.constant_bytes)
    header = (source.folder / "net.h").read_text()
    assert f"#define NET_CONSTANT_BYTES {constants}\n" in header
    assert f"#define NET_ARENA_BYTES {source.arena_bytes}\n" in header


def test_the_same_artifact_gives_the_same_text(source: CSource, tmp_path: Path) -> None:
    again = export_c(source.folder.parent / "tiny.safetensors", tmp_path / "c")
    for path in again.folder.iterdir():
        assert path.read_bytes() == (source.folder / path.name).read_bytes()


def test_names_cannot_leave_their_comments(tmp_path: Path) -> None:
    path = tiny(tmp_path / "net.safetensors")
    program, tensors = artifact.read(path)
    infos = (replace(program.subnets[0], name='a"b?é'), *program.subnets[1:])
    artifact.write(path, replace(program, model='*/ #error "', subnets=infos), tensors)
    source = export_c(path, tmp_path / "c")
    source.check(sanitize=False)
    assert '#define NET_LEVEL_NAMES {"a_b__"' in (source.folder / "net.h").read_text(encoding="ascii")


def test_inputs_round_to_even_and_clamp(source: CSource) -> None:
    scale = np.float32(source.program.quant.scales[0][0])
    x = np.array([0.5, 1.5, -0.5, 2.4, 1e9, -1e9, np.nan], np.float32) * scale
    assert to_numbers(source.program, x, 0).tolist() == [0, 2, 0, 2, 127, -127, -127]


# ---- power failure ----


def crash(source: CSource, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile and run tests/run/crash.c with the net."""
    program = source.program
    assert program.ops is not None
    places = [(program.plan.offsets[op.output], program.values[op.output].size(-1)) for op in program.ops]
    text = ", ".join(f"{{{at}, {size}}}" for at, size in places)
    (folder / "regions.h").write_text(f"static const unsigned regions[][2] = {{{text}}};\n")
    command = [
        "cc",
        "-std=c99",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DNET_RESUME",
        "-I",
        source.folder,
        "-I",
        folder,
    ]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    harness = Path(__file__).with_name("crash.c")
    subprocess.run([*command, *sanitize, harness, "-o", folder / "crash"], check=True)
    return subprocess.run([folder / "crash"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("make", [tiny, perceptron], ids=lambda f: f.__name__)
def test_power_failure_leaves_no_wrong_state(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = export_c(make(tmp_path / "net.safetensors"), tmp_path / "c")
    done = crash(source, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    switches, inferences, wrong_states, wrong_outputs = map(int, done.stdout.split())
    assert switches > 200_000
    assert inferences > 300
    assert wrong_states == wrong_outputs == 0


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("&& crc == rh_crc(found->sequence, found->value)", "&& (crc | 1) != 0"),  # believes torn records
        ("0x1021u", "0x0001u"),  # no CRC any more
        ("(uint8_t)(1 - record->slot)", "record->slot"),  # overwrites the only good copy
        ("if (net_at(0) != NET_OK) return NET_WRITE_FAILED;", ""),  # writes over a finished inference
        ("net_kept.level);\n        if", "net_state.level.value);\n        if"),  # forgets its level
        (
            "net_state.step.value - 1)",
            "net_state.step.value - 1 + (net_state.step.value == 2))",
        ),  # skips a layer
    ],
)
def test_the_power_failures_bite(tmp_path: Path, good: str, bad: str) -> None:
    source = export_c(perceptron(tmp_path / "net.safetensors"), tmp_path / "c")
    text = (source.folder / "rh_net.h").read_text()
    assert good in text
    (source.folder / "rh_net.h").write_text(text.replace(good, bad))
    assert crash(source, tmp_path).returncode == 1


def test_a_layer_never_writes_over_what_it_reads(source: CSource) -> None:
    """What makes a restarted layer give the same: checked here for the exported plan, op by op."""
    program = source.program
    assert program.ops is not None
    for op in program.ops:
        begin, end = (
            program.plan.offsets[op.output],
            program.plan.offsets[op.output] + program.values[op.output].size(-1),
        )
        for v in reads(op):
            assert (
                program.plan.offsets[v] >= end
                or program.plan.offsets[v] + program.values[v].size(-1) <= begin
            )


# ---- what it says of itself ----


def test_wrong_golden_vectors_are_noticed_however_wrong(tmp_path: Path) -> None:
    path = tiny(tmp_path / "net.safetensors", Quant(16, 16))
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    source, changed = export_c(path, tmp_path / "c", 1e3 * x), 0

    def negated(found: re.Match[str]) -> str:
        nonlocal changed
        numbers = [int(n) for n in found[2].split(",")]
        changed += sum(abs(n) > 2**14 for n in numbers)  # a difference beyond 16 bits
        return found[1] + ", ".join(str(-n if abs(n) > 2**14 else n) for n in numbers) + "}"

    golden = source.folder / "net_golden.h"
    golden.write_text(re.sub(r"(golden_output_\d\[\d+\] = \{)([^}]*)\}", negated, golden.read_text()))
    done = subprocess.run([source.compile(sanitize=True)], capture_output=True, check=True)
    assert int(done.stdout) == changed > 0


@pytest.mark.parametrize("quant", [None, *WIDE, INT8], ids=case_id)
def test_memory_is_what_the_compiler_takes(quant: Quant | None, tmp_path: Path) -> None:
    folder = export_c(tiny(tmp_path / "net.safetensors", quant), tmp_path / "c").folder
    (tmp_path / "sizes.c").write_text(
        '#include <stdio.h>\n#include "net.c"\n'
        "void net_nvm_write(uint16_t at, uint8_t byte) { (void)at, (void)byte; }\n"
        "uint8_t net_nvm_read(uint16_t at) { return (uint8_t)at; }\n"
        "int main(void) {\n"
        '    printf("%ld %ld ", (long)NET_RAM_BYTES, (long)NET_NVM_BYTES);\n'
        "#ifdef NET_RESUME\n"
        '    printf("%ld %ld", (long)(sizeof net_state + sizeof net_column), (long)(16 + sizeof net_kept));\n'
        "#else\n"
        '    printf("%ld 8", (long)(sizeof net_state + sizeof net_column + sizeof net_arena));\n'
        "#endif\n"
        "    return 0;\n}\n"
    )
    for flags in ([], ["-DNET_RESUME"]):
        command = [
            "cc",
            "-std=c99",
            *flags,
            "-I",
            str(folder),
            str(tmp_path / "sizes.c"),
            "-o",
            str(tmp_path / "sizes"),
        ]
        subprocess.run(command, check=True)
        ram, nvm, real_ram, real_nvm = subprocess.run(
            [tmp_path / "sizes"], capture_output=True
        ).stdout.split()
        assert (ram, nvm) == (real_ram, real_nvm)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_program_in_cpp_may_call_it(source: CSource, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\n'
        'extern "C" void net_nvm_write(uint16_t, uint8_t) {}\n'
        'extern "C" uint8_t net_nvm_read(uint16_t) { return 0; }\n'
        "int main() { static net_input x[NET_INPUT_SIZE]; static net_output y[NET_OUTPUT_SIZE];\n"
        "    return net_init() != NET_LOST || net_run(x, y) != NET_OK; }\n"
    )
    include = ["-I", str(source.folder), "-o"]
    subprocess.run(
        ["cc", "-std=c99", "-c", str(source.folder / "net.c"), *include, str(tmp_path / "net.o")], check=True
    )
    program = [str(tmp_path / name) for name in ("program", "main.cpp", "net.o")]
    subprocess.run(["c++", *include, *program], check=True)
    subprocess.run(program[:1], check=True)


def test_the_record_of_another_net_is_not_valid(tmp_path: Path) -> None:
    """Also where that has the same weights: the same model, without norms, of other widths."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    graph, found = rh.trace(model, torch.randn(1, 6)), set()
    for widths in ((0.25, 0.5, 1.0), (0.5, 0.75, 1.0), (0.5, 1.0)):
        rh.save(rh.Supernet(graph, rh.uniform(graph, widths)), tmp_path / "net.safetensors")
        text = (export_c(tmp_path / "net.safetensors", tmp_path / "c").folder / "net.c").read_text()
        found |= set(re.findall(r"#define NET_ID (\d+)", text))
    assert len(found) == 3


def test_a_weight_with_levels_that_two_ops_read(tmp_path: Path) -> None:
    """The second has narrower inputs than the first, whose widths the levels follow."""
    net = Net([Value(whole(4), (3, 3))])
    wide = net.conv(0, whole(4), (1, 1), norm=False)
    narrow = net.conv(0, (Segment(4, (1, 2, 4)),), (1, 1), norm=False)
    again = net.conv(narrow, whole(4), (1, 1), norm=False)
    net.ops[2] = replace(net.ops[2], weight=net.ops[0].weight)
    net.outputs = (wide, again)
    levels = net.rng.integers(0, 3, net.tensors[net.ops[0].weight].shape).astype(np.uint8)
    net.tensors[f"{net.ops[0].weight}@levels"] = levels
    net.save(tmp_path / "net.safetensors")
    agrees(
        tmp_path / "net.safetensors", tmp_path / "c", net.rng.standard_normal((3, 4, 3, 3)).astype(np.float32)
    )


def test_the_dilation_of_a_kernel_of_one_says_nothing(tmp_path: Path) -> None:
    net = Net([Value(whole(2), (3, 3))])
    net.conv(0, whole(2), (1, 1), dilation=(40_000, 40_000))
    net.save(tmp_path / "net.safetensors")
    agrees(tmp_path / "net.safetensors", tmp_path / "c", np.ones((1, 2, 3, 3), np.float32))


# ---- mistakes ----


def test_a_net_that_does_not_fit(source: CSource, tmp_path: Path) -> None:
    path, need = source.folder.parent / "tiny.safetensors", sum(source.constant_bytes)
    export_c(path, tmp_path, flash_bytes=need, ram_bytes=source.arena_bytes + source.column_bytes + 4)
    with pytest.raises(
        ValueError, match=rf"take {need} bytes of flash, 100 more than the {need - 100} given; ops\["
    ):
        export_c(path, tmp_path, flash_bytes=need - 100)
    need = source.arena_bytes + source.column_bytes + 4  # NET_RAM_BYTES
    with pytest.raises(
        ValueError, match=rf"take {need} bytes of RAM, 1 more than .*ops\[0\] \(conv2d 0.weight\) needs"
    ):
        export_c(path, tmp_path, ram_bytes=need - 1)


def test_runs_only_what_the_net_takes(source: CSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"level: got 3; want 0 to 2"):
        source.run(tmp_path, np.zeros((1, 1, 8, 8), np.float32), 3)
    with pytest.raises(ValueError, match=r"x: got \[1, 8, 8\]; want \[N, 1, 8, 8\]"):
        source.run(tmp_path, np.zeros((1, 8, 8), np.float32), 0)


def test_the_host_refuses_a_level_that_a_byte_would_wrap(source: CSource) -> None:
    host = source.compile(sanitize=True)
    for level in ("256", "-1", "3"):
        assert subprocess.run([host, level], input=b"", check=False, capture_output=True).returncode == 2


def test_a_relative_folder_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny(tmp_path / "tiny.safetensors")
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    source = export_c(path, ".")
    monkeypatch.chdir(tmp_path)
    source.check(sanitize=False)


def test_no_examples(source: CSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"examples: got none"):
        export_c(source.folder.parent / "tiny.safetensors", tmp_path, np.zeros((0, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"got NaN or infinity in a norm or an example"):
        export_c(tiny(tmp_path / "net", None), tmp_path, np.full((1, 1, 8, 8), np.nan, np.float32))


def test_what_the_engine_cannot_run(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "group_norm")
    rh.save(supernet(case).eval(), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net\.safetensors: has no program to export \(.*group_norm"):
        export_c(tmp_path / "net.safetensors", tmp_path)


def test_too_many_steps(tmp_path: Path) -> None:
    net = Net([Value(whole(4), ())])
    for _ in range(254):
        net.then(Activation, len(net.values) - 1, net.values[0], "relu")
    net.save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"got 254 ops; the C runs at most 253"):
        export_c(tmp_path / "net.safetensors", tmp_path)


def test_images_too_wide_for_16_bits(tmp_path: Path) -> None:
    net = Net([Value(whole(1), (1, 40_000))])
    net.conv(0, whole(1), (1, 1))
    net.save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"ops\[0\] \(conv2d\) walks over \[1, 40000\]"):
        export_c(tmp_path / "net.safetensors", tmp_path)


def test_no_compiler(source: CSource) -> None:
    with pytest.raises(ValueError, match=r"no-such-compiler: cannot be run: No such file"):
        source.compile("no-such-compiler")
    with pytest.raises(ValueError, match=r"exit status 1: .*no-such-flag"):
        source.compile(flags=("-Wno-error", "--no-such-flag"))


def test_levels_and_records_that_are_wrong(source: CSource, tmp_path: Path) -> None:
    """The statuses of net.h, in the order in which a user meets them."""
    code = """
    #include <stdio.h>
    #include "net.h"
    static uint8_t nvm[NET_RECORD_BYTES];
    static int broken;
    void net_nvm_write(uint16_t at, uint8_t byte) { nvm[at] = broken ? 0 : byte; }
    uint8_t net_nvm_read(uint16_t at) { return nvm[at]; }
    static void show(int status) { printf("%d:%d ", status, net_level()); }
    int main(void) {
        show(net_init());
        show(net_switch(NET_LEVELS)); show(net_switch(255));
        show(net_switch(0)); show(net_init());
        show(net_switch(1)); show(net_init());
        nvm[1] ^= 1; nvm[5] ^= 1; show(net_init());
        show(net_switch(0)); show(net_switch(2)); nvm[0] ^= 4; show(net_init());
        show(net_switch(2)); show(net_init());
        broken = 1; show(net_switch(1)); show(net_init());
        return 0;
    }
    """
    (tmp_path / "main.c").write_text(code)
    command = [
        "cc",
        "-std=c99",
        "-I",
        source.folder,
        tmp_path / "main.c",
        source.folder / "net.c",
        "-o",
        tmp_path / "a",
    ]
    subprocess.run(command, check=True)
    ok, no_level, damaged, lost, failed = range(5)
    want = [
        (lost, 2), (no_level, 2), (no_level, 2), (ok, 0), (ok, 0), (ok, 1), (ok, 1), (lost, 2),
        (ok, 0), (ok, 2),
    ]  # fmt: skip
    printed = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout.split()
    got = [tuple(map(int, pair.split(":"))) for pair in printed]
    assert got[: len(want)] == want
    # A flipped bit leaves the other copy; a switch repairs; a memory that keeps nothing is found out.
    assert got[10][0] == damaged
    assert got[10][1] in (0, 2)
    assert got[11:13] == [(ok, 2), (ok, 2)]
    assert got[13] == (failed, 2)
    assert got[14] == (damaged, 2)
