"""Masks of every granularity have exact counts and the best groups; levels nest, and say so when they cannot."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rheostat as rh
from rheostat.spec import Granularity
from rheostat.train.graph import Graph
from rheostat.train.masks import natural, planned
from rheostat_recipes.models.lenet import LeNet5

LINEAR = [rh.Element(), rh.Row(), rh.Column(), rh.Channel(), rh.Block(8, 16), rh.NM(2, 4)]
CONV = [
    *(rh.Element(), rh.Row(), rh.Column(), rh.Channel(), rh.Block(8, 18), rh.NM(4, 8), rh.Kernel()),
    *(rh.Pattern("rows"), rh.Pattern("columns"), rh.Pattern("natural")),
]
# Runs of inputs and four-cell patterns fix what the sparsest subnet keeps; larger ones may keep more.
CUTS: dict[Granularity, tuple[float, ...]] = {rh.NM(2, 4): (0.5, 0.25, 0.0), rh.NM(4, 8): (0.5, 0.25, 0.0)}


def name_of(x: object) -> str:
    return str(x).replace(" ", "")


def conv(seed: int = 0, out: int = 16, inputs: int = 8, kernel: int = 3) -> Tensor:
    return torch.randn(out, inputs, kernel, kernel, generator=torch.Generator().manual_seed(seed))


def linear(seed: int = 0) -> Tensor:
    return torch.randn(32, 48, generator=torch.Generator().manual_seed(seed))


def groups(weight: Tensor, granularity: Granularity) -> list[list[tuple[np.ndarray, ...]]]:
    """Written with loops: sets of groups, each group the numpy indices of its weights, compared within their set."""
    matrix = np.arange(weight.numel()).reshape(weight.shape[0], -1)
    flat = np.arange(weight.numel()).reshape(weight.shape)
    match granularity:
        case rh.Element():
            sets = [[[i] for i in flat.ravel()]]
        case rh.Row():
            sets = [[matrix[i] for i in range(len(matrix))]]
        case rh.Column():
            sets = [[matrix[:, j] for j in range(matrix.shape[1])]]
        case rh.Channel():
            sets = [[flat[:, c].ravel() for c in range(flat.shape[1])]]
        case rh.Kernel():
            sets = [[flat[i, c].ravel() for i in range(flat.shape[0]) for c in range(flat.shape[1])]]
        case rh.Block(rows=r, columns=c):
            sets = [
                [
                    matrix[i : i + r, j : j + c].ravel()
                    for i in range(0, matrix.shape[0], r)
                    for j in range(0, matrix.shape[1], c)
                ]
            ]
        case rh.NM(m=m):
            sets = [[[x] for x in row[j : j + m]] for row in matrix for j in range(0, len(row), m)]
        case rh.Pattern(patterns="rows"):
            sets = [list(flat[i, c]) for i in range(flat.shape[0]) for c in range(flat.shape[1])]
        case rh.Pattern(patterns="columns"):
            sets = [list(flat[i, c].T) for i in range(flat.shape[0]) for c in range(flat.shape[1])]
        case _:
            raise AssertionError(granularity)
    return [[np.unravel_index(np.asarray(g), weight.shape) for g in one] for one in sets]


def sparsity_for(granularity: Granularity) -> float:
    return CUTS.get(granularity, (0.6,))[0]


# --- one tensor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("weight", "granularity"),
    [(linear(), g) for g in LINEAR] + [(conv(), g) for g in CONV if g != rh.Pattern("natural")],
    ids=name_of,
)
def test_exact_count_of_the_best_groups(weight: Tensor, granularity: Granularity, ties: bool) -> None:
    if ties:  # few values, so that nearly every comparison is between equals
        weight = weight.sign() if isinstance(granularity, rh.Element | rh.NM) else torch.ones_like(weight)
    sparsity = sparsity_for(granularity)
    got = rh.mask(weight, granularity, sparsity)
    assert got.shape == weight.shape and got.dtype == torch.bool
    want = np.zeros(weight.shape, bool)
    for one in groups(weight, granularity):
        norms = [float((weight[g].double() ** 2).mean().sqrt()) for g in one]
        best = sorted(range(len(one)), key=lambda i: (-norms[i], i))
        for i in best[: len(one) - round(sparsity * len(one))]:
            want[one[i]] = True
    np.testing.assert_array_equal(got.numpy(), want)


def test_a_layer_that_is_mostly_zero_keeps_its_count() -> None:
    """A threshold at a percentile would keep nothing here, or everything."""
    weight = torch.zeros(10, 10)
    weight[0] = 1.0
    assert int(rh.mask(weight, rh.Element(), 0.5).sum()) == 50
    assert int(rh.mask(torch.ones(10, 10), rh.Element(), 0.3).sum()) == 70


def test_blocks_at_the_edge_count_by_their_root_mean_square() -> None:
    weight = torch.full((5, 7), 2.0)
    weight[4:, 6:] = 2.5  # the smallest tile, of one weight: by its L2 norm it would go first
    got = rh.mask(weight, rh.Block(2, 3), 0.5)
    assert got[4, 6]
    assert [int(got[i : i + 2, j : j + 3].float().mean()) for i in (0, 2, 4) for j in (0, 3, 6)] == [
        *(1, 1, 1, 1, 0, 0, 0, 0, 1)
    ]  # nine tiles, four dropped (round half to even), the last ones among equals
    whole = rh.mask(torch.rand(3, 4), rh.Block(), 0.0)
    assert whole.all()


def test_two_dimensional_view_of_a_convolution() -> None:
    """Rows, columns and blocks are those of `reshape(out, in * height * width)`, and go back to their places."""
    weight = conv(out=12, inputs=5)
    matrix = weight.reshape(12, -1)
    for granularity in (rh.Element(), rh.Row(), rh.Column(), rh.Block(4, 9)):
        got = rh.mask(weight, granularity, 0.4).reshape(12, -1)
        torch.testing.assert_close(got, rh.mask(matrix, granularity, 0.4))


def test_balanced_drops_the_same_in_every_filter() -> None:
    weight = conv()
    weight[0] *= 100
    got = rh.mask(weight, rh.Kernel(), 0.3, balanced=True)
    assert got.flatten(2).any(2).sum(1).tolist() == [6] * 16  # 8 kernels less round(2.4)
    got = rh.mask(weight, rh.Element(), 0.3, balanced=True)
    assert got.flatten(1).sum(1).tolist() == [72 - round(0.3 * 72)] * 16
    got = rh.mask(linear(), rh.Block(8, 8), 0.5, balanced=True)
    assert got.view(4, 8, 6, 8).all(3).all(1).sum(1).tolist() == [3] * 4


@pytest.mark.parametrize("preset", ["pconv", "corner", "eight"])
def test_patterns_are_the_closest_of_all(preset: str) -> None:
    t, corner = {14, 44, 53, 55}, {3, 12, 65, 120}
    ids = {"pconv": t, "corner": corner, "eight": t | corner}[preset]
    # The published numbering: the index, from 1, of the five removed cells among all sets of five of nine.
    removed = {i + 1: cells for i, cells in enumerate(itertools.combinations(range(9), 5))}
    patterns = np.array([[c not in removed[i] for c in range(9)] for i in sorted(ids)])
    weight = conv(3)
    got = rh.mask(weight, rh.Pattern(preset), 5 / 9)
    assert got.flatten(2).sum(2).unique().tolist() == [4]
    kernels = weight.flatten(2).flatten(0, 1).numpy()
    distances = ((kernels[:, None] - kernels[:, None] * patterns) ** 2).sum(2)  # [kernels, patterns]
    projected = (weight * got).flatten(2).flatten(0, 1).numpy()
    np.testing.assert_allclose(((kernels - projected) ** 2).sum(1), distances.min(1), rtol=1e-5)


def test_natural_patterns_are_the_most_frequent() -> None:
    weight = conv(1, out=40, inputs=10, kernel=3)
    kernels = weight.abs().flatten(2).flatten(0, 1).numpy()
    supports = [tuple(sorted(np.argsort(-k)[:2].tolist())) for k in kernels]
    counts = {s: supports.count(s) for s in set(supports)}
    found = natural(weight, 2, 5)
    assert len(found) == 5
    assert sorted((counts[s] for s in found), reverse=True) == sorted(counts.values(), reverse=True)[:5]
    got = rh.mask(weight, rh.Pattern("natural", num_patterns=5), 7 / 9)
    assert torch.equal(got, rh.mask(weight, rh.Pattern(found), 7 / 9))
    used = {tuple(np.flatnonzero(m).tolist()) for m in got.flatten(2).flatten(0, 1).numpy()}
    assert used == set(found)


def test_natural_patterns_of_any_kernel_size() -> None:
    for shape in ((6, 4, 5, 5), (6, 4, 1, 3), (6, 4, 7)):
        weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        size = math.prod(shape[2:])
        got = rh.mask(weight, rh.Pattern("natural"), 1 - 2 / size)
        assert got.flatten(2).sum(2).unique().tolist() == [2]


def test_kernel_rows_of_lenet() -> None:
    """Keeping 2, 3 and 4 of 5 rows gives the sparsities of the pruning paper's Table 2: 60, 40 and 20 %."""
    weight = conv(kernel=5)
    for kept, sparsity in ((2, 0.6024), (3, 0.405), (4, 0.207)):
        got = rh.mask(weight, rh.Pattern("rows"), sparsity)
        assert got.all(3).sum(2).unique().tolist() == [kept]
        assert got.any(3).sum(2).unique().tolist() == [kept]


def test_scores_rank_instead_of_the_magnitude() -> None:
    weight, score = linear(), torch.rand(32, 48)
    torch.testing.assert_close(rh.mask(weight, rh.Row(), 0.5, score=score), rh.mask(score, rh.Row(), 0.5))


def test_tiny_weights_are_no_ties() -> None:
    """Squares of float32 values below 1e-23 are zero in float32; they must still be ranked."""
    weight = torch.tensor([[1e-30, 3e-30, 2e-30, 4e-30]])
    assert rh.mask(weight, rh.Element(), 0.5).tolist() == [[False, True, False, True]]
    assert rh.mask(weight.T, rh.Row(), 0.5).ravel().tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("weight", "granularity", "sparsity", "message"),
    [
        (linear(), rh.Element(), 1.0, "got sparsity 1.0; want from 0 to below 1"),
        (linear(), rh.Element(), -0.1, "got sparsity -0.1"),
        (linear(), rh.Element(), math.nan, "got sparsity nan"),
        (linear(), rh.Row(), 0.99, r"keeps 0 of 32 groups of Row\(\); want at least 1"),
        (linear()[0], rh.Element(), 0.5, r"got shape \(48,\); want a weight with two dimensions"),
        (linear(), rh.Kernel(), 0.5, "want a convolution's weight"),
        (linear(), rh.Pattern(), 5 / 9, "want a convolution's weight"),
        (conv(), rh.Pattern(), 0.5, "has no pattern of 5 cells"),
        (conv(kernel=5), rh.Pattern("corner"), 0.84, r"got a kernel of \(5, 5\).*want 3x3"),
        (conv(), rh.Pattern(((0, 9),)), 7 / 9, "want cells below that"),
        (conv()[..., 0], rh.Pattern("rows"), 1 / 3, "want .out, in, height, width."),
        (linear(), rh.NM(2, 5), 0.6, "got 48 inputs.*want a multiple of 5"),
        (linear(), rh.NM(1, 4), 0.5, r"got sparsity 0.5 for NM\(n=1, m=4\); want 0.75"),
        (linear() * math.inf, rh.Element(), 0.5, "negative or not finite"),
    ],
    ids=name_of,
)
def test_bad_masks(weight: Tensor, granularity: Granularity, sparsity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rh.mask(weight, granularity, sparsity)


def test_bad_granularities() -> None:
    for wrong in (
        lambda: rh.Block(0, 4),
        lambda: rh.NM(4, 4),
        lambda: rh.NM(0, 4),
        lambda: rh.Pattern("pconv4"),
        lambda: rh.Pattern(()),
        lambda: rh.Pattern(((1, 0),)),
        lambda: rh.Pattern("natural", 0),
    ):
        with pytest.raises(ValueError, match=r"got .*; want"):
            wrong()
    with pytest.raises(ValueError, match="want Element, Kernel or Block"):
        rh.mask(linear(), rh.Row(), 0.5, balanced=True)
    with pytest.raises(ValueError, match=r"want one such as Element\(\)"):
        rh.mask(linear(), rh.Element, 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got scores of shape \(48, 32\)"):
        rh.mask(linear(), rh.Row(), 0.5, score=linear().T.abs())


# --- a whole model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 24),
        nn.Linear(24, 8),
    )
    return rh.trace(model, torch.randn(2, 8, 6, 6))


def assert_nested(found: rh.Levels, sparsity: tuple[float, ...]) -> None:
    for name, level in found.tensors.items():
        assert level.dtype == torch.uint8
        masks = [found.mask(name, k) for k in range(len(sparsity))]
        increments = [m & ~s for s, m in itertools.pairwise([torch.zeros_like(masks[0]), *masks])]
        assert all(bool((small <= large).all()) for small, large in itertools.pairwise(masks))
        assert torch.equal(sum(d.int() for d in increments), masks[-1].int())
        assert torch.equal(found.mask(name, -1), masks[-1])
        assert bool(masks[0].any())


@pytest.mark.parametrize(
    ("index", "granularity"), [(0, g) for g in CONV] + [(4, g) for g in LINEAR], ids=name_of
)
def test_levels_nest_and_each_is_the_mask_of_its_sparsity(
    graph, index: int, granularity: Granularity
) -> None:
    sparsity = CUTS.get(granularity, (0.7, 0.4, 0.1))
    name = f"{index}.weight"
    found = rh.levels(graph, sparsity, {name: granularity})
    assert_nested(found, sparsity)
    assert list(found.tensors) == [name]
    weight = graph.model[index].weight
    for k, s in enumerate(sparsity if granularity not in CUTS else sparsity[:1]):
        if granularity != rh.Pattern("natural"):
            assert torch.equal(found.mask(name, k), rh.mask(weight, granularity, s))


def test_chains_of_patterns_take_the_best_superset() -> None:
    fours, sixes = ((3, 4, 5, 7), (0, 1, 3, 4)), ((0, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 7), (2, 3, 5, 6, 7, 8))
    weight = conv(5, out=30, inputs=10)
    graph = rh.trace(layer := nn.Conv2d(10, 30, 3), torch.randn(1, 10, 5, 5))
    layer.weight.data.copy_(weight)
    found = rh.levels(graph, (5 / 9, 3 / 9, 1 / 9), rh.Pattern((*fours, *sixes)))
    assert_nested(found, (5 / 9, 3 / 9, 1 / 9))
    seen = set()
    for kernel, level in zip(
        weight.square().flatten(2).flatten(0, 1).double().tolist(),
        found.tensors["weight"].flatten(2).flatten(0, 1).tolist(),
        strict=True,
    ):
        first = max(fours, key=lambda p: sum(kernel[c] for c in p))
        fitting = [p for p in sixes if set(first) <= set(p)]
        if fitting:
            second = set(max(fitting, key=lambda p: sum(kernel[c] for c in p)))
        else:  # the pattern and the largest cells outside it
            rest = sorted(set(range(9)) - set(first), key=lambda c: -kernel[c])
            second = {*first, *rest[:2]}
        third = {*second, *sorted(set(range(9)) - second, key=lambda c: -kernel[c])[:2]}
        seen.add((first, len(fitting)))
        assert {c for c in range(9) if level[c] == 0} == set(first)
        assert {c for c in range(9) if level[c] <= 1} == second
        assert {c for c in range(9) if level[c] <= 2} == third
        assert level.count(3) == 1
    assert seen == {(fours[0], 2), (fours[1], 0)}, "both ways are tested"


def test_kernel_rows_of_all_levels_are_a_permutation(graph: Graph) -> None:
    found = rh.levels(graph, (2 / 3, 1 / 3, 0), {"0.weight": rh.Pattern("rows")})
    level = found.tensors["0.weight"]
    assert (level == level[..., :1]).all()
    assert (level[..., 0].sort(2).values == torch.tensor([0, 1, 2])).all()


def test_names_skip_and_mappings(graph: Graph) -> None:
    found = rh.levels(graph, (0.6, 0.4, 0), skip=("5.weight", "1.weight"))
    assert found.names == ("0.4", "0.6", "1.0")
    assert list(found.tensors) == ["0.weight", "4.weight"]
    assert all(int(level.max()) == 2 for level in found.tensors.values())
    found = rh.levels(graph, {"0.weight": (0.5, 0.25), "4.weight": (0.75, 0.5)})
    sizes = 16 * 72, 24 * 256
    assert found.names == (
        *(str(round((a * sizes[0] + b * sizes[1]) / sum(sizes), 4)) for a, b in ((0.5, 0.25), (0.75, 0.5))),
    )
    assert found.mask("4.weight", 0).float().mean() == 0.25
    assert found.sparsity(-1) == (0.25 * sizes[0] + 0.5 * sizes[1]) / sum(sizes)
    assert rh.levels(graph, (0.5,), names=("M1",)).names == ("M1",)
    assert rh.levels(graph, 0.5).names == ("0.5",)
    with pytest.raises(ValueError, match=r"levels: got names=\('a', 'b'\) for 1 sparsities"):
        rh.levels(graph, (0.5,), names=("a", "b"))


def test_global_ranks_all_layers_together(graph: Graph) -> None:
    scores = {name: score.clone() for name, score in rh.magnitude(graph).items()}
    scores["0.weight"][:] = 1 + 1e-3 * torch.rand_like(
        scores["0.weight"]
    )  # equal scores: nearly all are at the mean
    found = rh.levels(graph, (0.4, 0.3), scores=scores, allocation="global")
    total = sum(level.numel() for level in found.tensors.values())
    for k, s in enumerate((0.4, 0.3)):
        masks = {name: found.mask(name, k) for name in found.tensors}
        assert sum(int(m.sum()) for m in masks.values()) == total - round(s * total)
        kept = torch.cat([(scores[n] / scores[n].double().mean())[m] for n, m in masks.items()])
        gone = torch.cat([(scores[n] / scores[n].double().mean())[~m] for n, m in masks.items()])
        assert kept.min() >= gone.max()
    assert_nested(found, (0.4, 0.3))
    assert found.mask("0.weight", 0).float().mean() > 0.9
    rows = rh.levels(graph, (0.5,), rh.Row(), allocation="global")
    kept = sum(int(rows.mask(name, 0).sum()) for name in rows.tensors)
    assert total / 2 <= kept < total / 2 + 256
    assert all(
        torch.equal(m := rows.mask(n, 0), m.flatten(1).all(1).view(-1, *[1] * (m.dim() - 1)).expand_as(m))
        for n in rows.tensors
    )


def test_global_leaves_every_layer_its_floor(graph: Graph) -> None:
    scores = rh.magnitude(graph)
    scores["5.weight"] = torch.zeros(8, 24)
    scores["5.weight"][0, 0] = 1e-9
    found = rh.levels(graph, (0.5,), scores=scores, allocation="global", floor=0.1)
    assert int(found.mask("5.weight", 0).sum()) == math.ceil(0.1 * 8 * 24)
    with pytest.raises(ValueError, match=r"floor=0\.6 keeps"):
        rh.levels(graph, (0.5,), allocation="global", floor=0.6)


def test_transposed_weights_are_turned() -> None:
    """The filters of a weight stored [in, out] are its columns."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 10))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(x, self.weight)

    graph = rh.trace(net := Net(), torch.randn(2, 6))
    found = rh.levels(graph, (0.5,), rh.Row())
    assert torch.equal(found.mask("weight", 0), rh.mask(net.weight.T, rh.Row(), 0.5).T)


def test_lenet_at_the_papers_sparsities() -> None:
    graph = rh.trace(LeNet5(), torch.zeros(1, 1, 28, 28))
    rows, irregular = rh.Pattern("rows"), rh.Element()
    own = {"conv1.weight": rows, "conv2.weight": rows}
    own |= {f"fc{i}.weight": irregular for i in (1, 2)}
    found = rh.levels(graph, (0.6, 0.4, 0.2), own)
    assert_nested(found, (0.6, 0.4, 0.2))
    for name, level in found.tensors.items():
        for k, s in enumerate((0.6, 0.4, 0.2)):
            assert int((level <= k).sum()) == level.numel() - round(s * level.numel()), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": (0.4, 0.6)}, "descending"),
        ({"sparsity": (0.4, 0.4)}, "descending"),
        ({"sparsity": ()}, r"got sparsity \(\)"),
        ({"sparsity": (1.0, 0.5)}, "from 0 to below 1"),
        ({"sparsity": {"5.weight": (0.999,)}}, "5.weight: sparsity 0.999 keeps 0 of 192 groups"),
        ({"sparsity": (0.5,), "granularity": rh.Pattern("rows")}, "4.weight: got shape"),
        ({"sparsity": (0.5,), "granularity": rh.Element}, "0.weight: got granularity"),
        ({"sparsity": (0.5,), "skip": ("6.weight",)}, "got the parameter '6.weight'; want names"),
        ({"sparsity": (0.5,), "granularity": {"1.weight": rh.Element()}}, "got the parameter '1.weight'"),
        ({"sparsity": {"0.weight": (0.5,)}, "granularity": {"4.weight": rh.Row()}}, "not both; want both"),
        ({"sparsity": {"0.weight": (0.5,), "4.weight": (0.5, 0.4)}}, "different numbers of sparsities"),
        ({"sparsity": (0.5,), "skip": ("0.weight", "4.weight", "5.weight")}, "nothing is left to prune"),
        ({"sparsity": (0.5,), "scores": {}}, "0.weight: got no score for it; want .16, 8, 3, 3."),
        ({"sparsity": (0.5,), "scores": {"0.weight": torch.ones(3, 3)}}, r"got scores of shape \(3, 3\)"),
        ({"sparsity": (0.5,), "allocation": "local"}, "got allocation='local'"),
        ({"sparsity": {"0.weight": (0.5,)}, "allocation": "global"}, "want one for all"),
        (
            {"sparsity": (0.5,), "granularity": rh.NM(), "allocation": "global"},
            "it keeps the same everywhere",
        ),
        ({"sparsity": (0.5,), "allocation": "global", "floor": 2.0}, "got floor=2.0"),
        ({"sparsity": (0.5, 0.4), "names": ("one",)}, r"names=\('one',\) for 2 sparsities"),
        ({"sparsity": (0.5, 0.4), "names": ("one", "one")}, "different ones"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_levels(graph: Graph, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rh.levels(graph, **arguments)


def test_levels_from_masks() -> None:
    small, large = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    found = rh.Levels.from_masks(("a", "b"), [{"w": small}, {"w": large}])
    assert found.tensors["w"].tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="w: subnet 'b' drops 1 weights that the smaller 'a' keeps"):
        rh.Levels.from_masks(("a", "b"), [{"w": large}, {"w": small}])
    with pytest.raises(ValueError, match="want one mapping for each name"):
        rh.Levels.from_masks(("a", "b"), [{"w": large}, {"v": large}])
    with pytest.raises(ValueError, match="w: subnet 'a' keeps nothing of it"):
        rh.Levels.from_masks(("a", "b"), [{"w": ~torch.ones_like(small)}, {"w": small}])
    with pytest.raises(ValueError, match=r"want torch\.uint8"):
        rh.Levels(("a",), {"w": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="got no tensor"):
        rh.Levels(("a",), {})
    with pytest.raises(ValueError, match="want 1 to 255"):
        rh.Levels((), {"w": torch.zeros(2, 2, dtype=torch.uint8)})


def test_norms_and_vectors_are_never_pruned(graph: Graph) -> None:
    assert list(planned("here", graph, (0.5,), rh.Element(), ())) == ["0.weight", "4.weight", "5.weight"]


def test_cubic_schedule() -> None:
    at = [rh.cubic(step, 10, 0.2, 0.9) for step in range(-1, 13)]
    assert at[0] == at[1] == 0.2 and at[11] == at[-1] == 0.9
    np.testing.assert_allclose(at[6], 0.9 + (0.2 - 0.9) * 0.5**3)
    assert all(a < b for a, b in itertools.pairwise(at[1:12]))
