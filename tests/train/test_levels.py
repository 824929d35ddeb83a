"""Levels inside a supernet: every subnet is the masked model, pruned weights stay zero, frozen ones stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rheostat as rh
from cases import CASES, Case, call
from masked import kept, loss_of, masked, relative_error
from rheostat import artifact
from rheostat.train.masks import Levels
from rheostat.train.nested import fit_nested
from rheostat.train.quant import Quantized

NAMES = ("sparse", "middle", "dense")
SOME = (
    "lenet",
    "resnet20",
    "grouped_few",
    "unet",
    "hf_bert_sdpa",
    "hf_gpt2_eager",
    "tied_transpose",
    "gated",
)
PARAMS = [pytest.param(case, id=case.name) for case in CASES if case.name in SOME]


def random_levels(model: nn.Module, num_subnets: int = 3, seed: int = 0) -> Levels:
    """Levels 0 to `num_subnets`, which no subnet keeps, over all matrices and kernels."""
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randint(0, num_subnets + 1, p.shape, generator=random, dtype=torch.uint8)
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    return Levels(NAMES[:num_subnets], tensors)


def supernet(case: Case) -> rh.Supernet:
    model = case.model()
    return rh.Supernet(rh.trace(model, case.inputs()), levels=random_levels(model)).eval()


@pytest.fixture(params=PARAMS)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def by_masks(case: Case, k: int) -> nn.Module:
    """The case's own model with the weights above level k at zero."""
    model = case.model().eval()
    levels = random_levels(model).tensors
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in levels:
                parameter.mul_(levels[name] <= k)
    return model


def test_every_subnet_is_the_masked_model(case: Case) -> None:
    net, inputs = supernet(case), case.inputs()
    with torch.no_grad():
        for k in range(len(net)):
            want = call(by_masks(case, k), inputs)
            assert relative_error(call(net[k], inputs), want) < 1e-6
            assert relative_error(call(net.extract(k), inputs), want) < 1e-6
            kept_weights = sum(int((p != 0).sum()) for p in by_masks(case, k).parameters() if p.dim() > 1)
            assert kept_weights == sum(
                int((p != 0).sum()) for p in net.extract(k).parameters() if p.dim() > 1
            )


def test_gradients_are_those_of_the_masked_model(case: Case) -> None:
    net, inputs = supernet(case), case.inputs()
    leaf = {n: t.detach().clone().requires_grad_() for n, t in net.named_parameters()}
    levels = random_levels(case.model()).tensors
    total = torch.zeros(())
    for k in range(len(net)):
        used = {n: leaf.get(f"{n}@{k}", leaf[n]) for n, _ in net[-1].named_parameters()}
        used = {n: t * (levels[n] <= k) if n in levels else t for n, t in used.items()}
        args = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
        kwargs = inputs if isinstance(inputs, dict) else {}
        total = total + loss_of(torch.func.functional_call(net.extract(k), used, args, kwargs))
    want = torch.autograd.grad(total, list(leaf.values()), allow_unused=True)
    for _ in range(2):
        net.attach_grads_()
        for module in net:
            loss_of(call(module, inputs)).backward()
        net.collect_grads_()
        scale = max(float(g.abs().max()) for g in want if g is not None)
        for parameter, grad in zip(net.parameters(), want, strict=True):
            assert parameter.grad is not None
            expected = torch.zeros_like(parameter) if grad is None else grad
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=2e-6 * scale)


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip


def batches(num: int = 4) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(5)
    return [
        (torch.randn(16, 1, 8, 8, generator=random), torch.randint(0, 3, (16,), generator=random))
        for _ in range(num)
    ]


def adamw(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{**g, "weight_decay": 0.3} for g in groups], lr=1e-2)


def test_pruned_weights_stay_zero_under_adamw_with_decay() -> None:
    model = small_net()
    levels = random_levels(model)
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=levels)
    rh.fit(net, batches(), epochs=25, optimizer=adamw, progress=False)
    for k in range(3):
        for name, parameter in net[k].named_parameters():
            if name in levels.tensors:
                mask = levels.tensors[name] <= k
                assert not parameter[~mask].any()
                assert torch.equal(parameter, net.shared.get_parameter(name) * mask)
                assert not torch.equal(parameter, model.get_parameter(name) * mask)


@pytest.mark.parametrize("largest", [1.0, 0.75])
def test_widths_and_levels_combine(largest: float) -> None:
    model = CASES[1].model()  # resnet20
    graph, inputs = rh.trace(model, CASES[1].inputs()), CASES[1].inputs(1)
    net = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, largest)), levels=random_levels(model)).eval()
    plain = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, largest))).eval()
    # The masked weights rank the channels, so the plain net's order is another one: compare with the net's own values.
    whole = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 1.0)), levels=random_levels(model)).eval()
    assert [s.widths for s in net.subnets] == [s.widths for s in plain.subnets]
    for k in range(3):
        widths = net.subnets[k].widths
        full = copy.deepcopy(whole[-1])
        with torch.no_grad():
            for name, parameter in full.named_parameters():
                if name in whole.levels:
                    parameter.mul_(whole.levels[name] <= k)
            want = masked(whole.graph, full, net[k], widths)(inputs)
            assert relative_error(net[k](inputs), want) < 1e-5
        assert {n: tuple(p.shape) for n, p in net[k].named_parameters()} == {
            n: tuple(p.shape) for n, p in plain[k].named_parameters()
        }
        assert set(kept(graph, widths))  # the reference removed something by name


def test_cost_counts_the_weights_that_are_kept() -> None:
    model = small_net()
    net = rh.Supernet(rh.trace(model, torch.zeros(2, 1, 8, 8)), levels=random_levels(model))
    for k in range(3):
        cost, small = net.cost(k), net.extract(k)
        weights = {n: int((p != 0).sum()) for n, p in small.named_parameters() if p.dim() > 1}
        others = sum(p.numel() for p in small.parameters() if p.dim() == 1)
        assert cost.parameters == sum(weights.values()) + others
        assert cost.macs == 36 * weights["0.weight"] + weights["4.weight"] + weights["6.weight"]


def test_increments_move_alone() -> None:
    """Every stage leaves the smaller subnets as they were, to the last bit, and all larger weights too."""
    model = small_net()
    levels = random_levels(model)
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=levels)
    x = batches()[0][0]
    outputs: list[Tensor] = []
    for k in range(3):
        before = {n: p.detach().clone() for n, p in net.shared.named_parameters()}
        net.freeze_except_(k)
        rh.fit(net, batches(), epochs=3, optimizer=adamw, subnets=[k], progress=False)
        net.eval()
        for j, want in enumerate(outputs):
            assert torch.equal(net[j](x), want)
        for name, level in levels.tensors.items():
            moved = net.shared.get_parameter(name) != before[name]
            assert torch.equal(moved, (level == k) & moved)
            assert moved[level == k].float().mean() > 0.9
        bias = net.shared.get_parameter("6.bias")
        assert torch.equal(bias, before["6.bias"]) == (k > 0)
        outputs.append(net[k](x).detach())


def test_widths_train_by_stages_too() -> None:
    model = small_net()
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    net.freeze_except_(0)
    rh.fit(net, batches(), epochs=2, optimizer=adamw, subnets=[0], progress=False)
    before = {n: p.detach().clone() for n, p in net.extract(0).named_parameters()}
    net.freeze_except_(1)
    rh.fit(net, batches(), epochs=2, optimizer=adamw, subnets=[1], progress=False)
    assert all(torch.equal(p, before[n]) for n, p in net.extract(0).named_parameters())
    assert not torch.equal(net.shared[0].weight, model[0].weight)
    # The same in one call.
    other = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    fit_nested(other, batches(), epochs=2, optimizer=adamw, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in other.extract(0).named_parameters())


MODES = {"subset": 0, "raw": 1, "staged": 3, "joint": 1}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    model = small_net()
    levels = random_levels(model)
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=levels)
    stages = fit_nested(net, batches(), epochs=2, mode=mode, optimizer=adamw, progress=False)
    assert len(stages) == MODES[mode]
    for name, level in levels.tensors.items():
        now, was = net.shared.get_parameter(name), model.get_parameter(name)
        for value in range(3):
            trained = (mode == "raw" and value == 0) or mode in ("staged", "joint")
            assert torch.equal(now[level == value], was[level == value]) != trained
        assert not now[level == 3].any()
    if mode == "joint":
        other = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=levels)
        rh.fit(other, batches(), epochs=2, optimizer=adamw, progress=False)
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in net.state_dict().items())
    with pytest.raises(ValueError, match="staged"):
        fit_nested(net, batches(), epochs=1, mode="stages")
    with pytest.raises(ValueError, match="one for each of"):
        fit_nested(net, batches(), epochs=[1, 2, 3, 4], mode=mode)


def test_stages_of_different_length() -> None:
    model = small_net()
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=random_levels(model))
    stages = fit_nested(net, batches(), epochs=[3, 1, 2], progress=False)
    assert [len(stage) for stage in stages] == [3, 1, 2]


def test_stages_resume(tmp_path: Path) -> None:
    def run(name: str, stop: bool) -> dict[str, Tensor]:
        model = small_net()
        net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=random_levels(model))
        train = Stopping(batches(), 13 if stop else 1000)
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            fit_nested(
                net, train, epochs=2, checkpoint=tmp_path / f"{name}.safetensors", resume=True, progress=False
            )
        return net.state_dict()

    want = run("whole", stop=False)
    run("cut", stop=True)
    assert sorted(p.name for p in tmp_path.glob("cut*")) == [
        "cut-stage0.safetensors",
        "cut-stage1.safetensors",
    ]
    got = run("cut", stop=False)
    assert all(torch.equal(t, want[n]) for n, t in got.items())


class Stopping(list[tuple[Tensor, Tensor]]):
    """A loader that is interrupted after some batches in all."""

    def __init__(self, items: list[tuple[Tensor, Tensor]], left: int) -> None:
        super().__init__(items)
        self.left = left

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in super().__iter__():
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield item


def test_a_checkpoint_of_other_levels_is_refused(tmp_path: Path) -> None:
    model, path = small_net(), tmp_path / "run.safetensors"
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, levels=random_levels(model))
    rh.fit(net, batches(), epochs=1, checkpoint=path, progress=False)
    other = rh.Supernet(graph, levels=random_levels(model, seed=1))
    with pytest.raises(ValueError, match="levels"):
        rh.fit(other, batches(), epochs=1, checkpoint=path, resume=True, progress=False)


def test_relevel() -> None:
    model = small_net()
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=random_levels(model))
    new = {n: (t + 1).clamp(max=3) for n, t in random_levels(model).tensors.items()}
    net.relevel_(Levels(NAMES, {n: t.index_fill_(0, torch.tensor(0), 0) for n, t in new.items()}))
    for k in range(3):
        for name, level in new.items():
            assert torch.equal(
                net[k].get_parameter(name) != 0, (level <= k) & (net[-1].get_parameter(name) != 0)
            )
    with pytest.raises(ValueError, match="of net"):
        net.relevel_(Levels(NAMES, {"0.weight": new["0.weight"]}))


def test_copies_follow_a_copy_and_a_cast() -> None:
    model = small_net()
    net = rh.Supernet(rh.trace(model, torch.zeros(1, 1, 8, 8)), levels=random_levels(model))
    other = copy.deepcopy(net).double()
    with torch.no_grad():
        other.shared.get_parameter("0.weight").add_(1)
    other.refresh_()
    level = net.levels["0.weight"]
    for k in range(3):
        assert net[k].get_parameter("0.weight").dtype == torch.float32
        got = other[k].get_parameter("0.weight")
        assert torch.equal(got, (net[-1].get_parameter("0.weight").double() + 1) * (level <= k))
    assert other.copied_bytes == 2 * net.copied_bytes > 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"9.weight": torch.zeros(3, 12)}, "9.weight"),
        ({"1.weight": torch.zeros(6)}, "norm"),
        ({"6.weight": torch.zeros(12, 3)}, r"\(3, 12\)"),
    ],
)
def test_bad_levels(tensors: dict[str, Tensor], message: str) -> None:
    graph = rh.trace(small_net(), torch.zeros(1, 1, 8, 8))
    levels = Levels(NAMES, {n: t.to(torch.uint8) for n, t in tensors.items()})
    with pytest.raises(ValueError, match=message):
        rh.Supernet(graph, levels=levels)
    with pytest.raises(ValueError, match="subnets"):
        rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)), levels=levels)


def test_fit_trains_only_the_subnets_asked_for() -> None:
    model = small_net()
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 1.0)))
    history = rh.fit(net, batches(), epochs=1, subnets=["0.5"], validation=batches(1), progress=False)
    assert set(history[0].loss) == set(history[0].validation) == {"0.5"}
    assert [info.accuracy is None for info in net.infos] == [True, False, True]
    for subnets, message in (([], "at least one"), (["0.7"], "0.7")):
        with pytest.raises(ValueError, match=message):
            rh.fit(net, batches(), epochs=1, subnets=subnets, progress=False)


def test_hooks_see_gradients_and_the_step() -> None:
    model = small_net()
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    weight = net.shared.get_parameter("6.weight")

    def before(step: int, lr: float) -> None:
        assert weight.grad is not None
        weight.grad.fill_(1.0)
        seen.append((step, lr, weight.detach().clone(), weight.grad.clone()))

    def after(step: int, lr: float) -> None:
        number, rate, was, grad = seen[step]
        assert (number, rate) == (step, lr)
        torch.testing.assert_close(weight.detach(), was - lr * grad)

    rh.fit(
        net, batches(), epochs=2, lr=0.1, momentum=0, weight_decay=0, before_step=before, after_step=after,
        progress=False,
    )  # fmt: skip
    assert len(seen) == 8
    assert seen[0][1] == pytest.approx(0.1)


# --- in the artifact --------------------------------------------------------------------------------------------------


def nets_to_save(case: Case) -> list[rh.Supernet]:
    model = case.model()
    graph, levels = rh.trace(model, case.inputs()), random_levels(model)
    mixed = rh.Supernet(graph, rh.uniform(graph, (0.5, 0.5001, 1.0)), levels=levels)
    return [rh.Supernet(graph, levels=levels).eval(), mixed.eval()]


def test_save_and_load(case: Case, tmp_path: Path) -> None:
    for net in nets_to_save(case):
        first, second, third = (tmp_path / f"{n}.safetensors" for n in "abc")
        rh.save(net, first)
        back = rh.Supernet.load(first, case.build(), case.inputs()).eval()
        rh.save(back, second)
        assert first.read_bytes() == second.read_bytes()
        rh.save(rh.Supernet.load(second, case.build(), case.inputs()).eval(), third)
        assert first.read_bytes() == third.read_bytes()
        table = rh.cost(first)
        with torch.no_grad():
            for k in range(len(net)):
                got, want = call(back[k], case.inputs(1)), call(net[k], case.inputs(1))
                assert relative_error(got, want) == 0
                assert (table[k].parameters, table[k].macs) == (net.cost(k).parameters, net.cost(k).macs)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "grouped_few"])
def test_integers_are_those_of_masked_weights(name: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    for net in nets_to_save(case):
        quantized = rh.quantize(net, [case.inputs(seed) for seed in range(3)])
        quantized.save(tmp_path / "q.safetensors")
        program, tensors = artifact.read(tmp_path / "q.safetensors")
        x = case.inputs(4)
        assert isinstance(x, Tensor)
        for k in range(len(net)):
            masked_weights = {
                n: a * (tensors[n + "@levels"] <= k) if n in program.levels else a
                for n, a in tensors.items()
                if not n.endswith("@levels")
            }
            plain = Quantized(replace(program, levels={}), masked_weights)
            assert torch.equal(quantized(x, k), plain(x, k))
            with torch.no_grad():
                assert relative_error(quantized(x, k), net[k](x)) < 0.2


@pytest.mark.parametrize("name", ["lenet", "resnet20", "grouped_few"])
def test_the_engine_runs_every_level(name: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    for net in nets_to_save(case):
        x = case.inputs(4)
        assert isinstance(x, Tensor)
        rh.save(net, tmp_path / "float.safetensors")
        quantized = rh.quantize(net, [case.inputs(seed) for seed in range(2)])
        quantized.save(tmp_path / "int.safetensors")
        floats, integers = (rh.Engine(tmp_path / f"{kind}.safetensors") for kind in ("float", "int"))
        for k in (2, 0, 1, 0):
            floats.select(k)
            integers.select(k)
            with torch.no_grad():
                want = net.extract(k)(x)
            assert relative_error(torch.from_numpy(floats(x.numpy())), want) < 1e-5
            assert torch.equal(torch.from_numpy(integers(x.numpy())), quantized(x, k))
