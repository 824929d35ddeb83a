"""Who may import whom, over the syntax trees; and what may stand nowhere: pickles, registries, mutable globals."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rheostat"
RECIPES = ROOT / "recipes" / "rheostat_recipes"
NATIVE_TO_PYTHON = set(sys.stdlib_module_names)

# A module imports only from rooms its own room may see, and within a room only what stands to its left.
CORE = (
    *("spec", "program", "program_json", "program_check", "encodings"),
    *("artifact", "cost", "sizes", "energy"),
)
TRAIN = (
    *("rules", "graph", "sample", "masks", "small", "check", "order", "supernet", "distributed"),
    *("data", "loop", "checkpoint", "norm", "fit"),
    *("criteria", "nested", "admm", "lasso", "slim", "lower", "quant", "export"),
)
RUN = ("engine", "export_c", "policy", "governor", "signals")
ORDER = (
    *(f"rheostat.{name}" for name in CORE),
    *(f"rheostat.run.{name}" for name in RUN),
    *(f"rheostat.train.{name}" for name in TRAIN),
    *(f"rheostat.{name}" for name in ("measure", "plot", "cli")),
)
ROOMS = {
    "core": {"core"},
    "run": {"core", "run"},
    "train": {"core", "train"},
    "measure": {"core", "run", "train"},  # of `train` only inside functions: it brings torch
    "plot": {"core", "run"},
    "cli": {"core"},
}
# Libraries that a room may import at the top of a file; `train` may use any of its extra inside functions.
LIBRARIES = {
    "core": {"numpy"},
    "run": {"numpy"},
    "train": {"numpy", "torch", "safetensors"},
    "measure": {"numpy"},
    "plot": {"numpy"},
    "cli": {"typer", "rich"},
}
# Anything that unpickles.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Decorators that change or describe the function they stand on, and put it into no table.
DECORATORS = {
    "abstractmethod", "cache", "cached_property", "classmethod", "contextlib.contextmanager", "contextmanager",
    "dataclass", "dataclasses.dataclass", "functools.cache", "functools.lru_cache", "functools.wraps", "lru_cache",
    "overload", "property", "staticmethod", "torch.compiler.disable", "torch.inference_mode", "torch.no_grad", "wraps",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = (
        path.relative_to(path.parents[len(path.parts) - 1 - path.parts.index("rheostat")])
        .with_suffix("")
        .parts
    )
    return ".".join(parts).removesuffix(".__init__")


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) < 2:
        return "front door"
    return parts[1] if parts[1] in ROOMS else "core"


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Every module that running the code imports, dotted; imports for annotations alone are left out."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide who imports whom"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(child, inside_functions=inside_functions)


def home(dotted: str) -> str | None:
    """The module of ours that an import reaches: `rheostat.train.fit.fit` is `rheostat.train.fit`."""
    if dotted.partition(".")[0] != "rheostat":
        return None
    while "." in dotted and dotted not in ORDER and dotted not in PACKAGES:
        dotted = dotted.rpartition(".")[0]
    return dotted


PACKAGES = ("rheostat.run", "rheostat.train")
MODULES = [path for path in sources(SOURCE) if path.name not in {"__init__.py", "__main__.py"}]
PYTHON = [path for folder in (SOURCE, RECIPES, ROOT / "tests", ROOT / "bench") for path in sources(folder)]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_every_module_has_its_place(path: Path) -> None:
    assert module_name(path) in ORDER, "a new module: give it a place in ORDER above"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_imports_point_to_the_left(path: Path) -> None:
    me = module_name(path)
    lazy_only = room(me) == "cli"  # the command line sees everything, but only when a verb needs it
    for dotted in imports(tree(path), inside_functions=not lazy_only):
        other = home(dotted)
        if other is None or other == "rheostat":
            continue
        assert other not in PACKAGES, f"{me} imports the package {other}; name the module"
        assert room(other) in ROOMS[room(me)], f"{me} may not see {other}"
        assert ORDER.index(other) < ORDER.index(me), f"{me} imports {other}, which stands after it"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_nothing_imports_the_command_line_plots_or_recipes(path: Path) -> None:
    me = module_name(path)
    for dotted in imports(tree(path), inside_functions=True):
        reached = home(dotted) or dotted.partition(".")[0]
        if me != "rheostat.cli":
            assert reached not in {"rheostat.cli", "rheostat.plot", "rheostat_recipes"}, dotted


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_libraries_of_a_room(path: Path) -> None:
    allowed = LIBRARIES[room(module_name(path))] | NATIVE_TO_PYTHON | {"rheostat"}
    at_the_top = {dotted.partition(".")[0] for dotted in imports(tree(path), inside_functions=False)}
    assert at_the_top <= allowed, at_the_top - allowed


@pytest.mark.parametrize("path", [p for p in MODULES if room(module_name(p)) in {"core", "run"}], ids=short)
def test_the_running_half_never_needs_more_than_numpy(path: Path) -> None:
    everywhere = {dotted.partition(".")[0] for dotted in imports(tree(path), inside_functions=True)}
    assert everywhere <= NATIVE_TO_PYTHON | {"numpy", "rheostat"}


def test_python_m_is_the_command_line() -> None:
    assert list(imports(tree(SOURCE / "__main__.py"), inside_functions=True)) == ["rheostat.cli.main"]


def test_the_front_door_is_lazy() -> None:
    top = {dotted for dotted in imports(tree(SOURCE / "__init__.py"), inside_functions=False) if home(dotted)}
    assert top == {"rheostat.cost.cost"}
    for package in PACKAGES:
        path = SOURCE / package.partition(".")[2] / "__init__.py"
        if path.exists():
            assert not list(imports(tree(path), inside_functions=True)), (
                f"{package} resolves nothing by itself"
            )


@pytest.mark.parametrize("path", sources(RECIPES), ids=short)
def test_recipes_use_public_names_only(path: Path) -> None:
    import rheostat

    nodes = list(ast.walk(tree(path)))
    for dotted in imports(tree(path), inside_functions=True):
        if dotted.partition(".")[0] == "rheostat":
            assert dotted == "rheostat" or dotted.removeprefix("rheostat.") in rheostat.__all__, dotted
    aliases = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "rheostat"
    }
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }
    assert used <= {*rheostat.__all__, "__version__"}


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_no_pickles(path: Path) -> None:
    module = tree(path)
    roots = {dotted.partition(".")[0] for dotted in imports(module, inside_functions=True)}
    assert not roots & PICKLES
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if ast.unparse(node.func) == "torch.load":
            assert keywords.get("weights_only") == "True", (
                f"line {node.lineno}: torch.load without weights_only=True"
            )
        assert keywords.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"


@pytest.mark.parametrize("path", [*sources(SOURCE), *sources(RECIPES)], ids=short)
def test_no_registries_and_no_globals(path: Path) -> None:
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: module-level state"
        for decorator in getattr(node, "decorator_list", ()):
            function = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
            allowed = function in DECORATORS or function.endswith((".setter", ".deleter"))
            # Typer has no other way to name its verbs.
            typer = path.name == "cli.py" and function.endswith((".command", ".callback"))
            assert allowed or typer, f"line {decorator.lineno}: @{function}"


def test_the_rules_bite(tmp_path: Path) -> None:
    sample = ast.parse(
        "import torch\ndef f():\n    from rheostat.train.fit import fit\n    import rheostat.cli"
    )
    assert list(imports(sample, inside_functions=False)) == ["torch"]
    assert [home(d) for d in imports(sample, inside_functions=True)] == [
        None,
        "rheostat.train.fit",
        "rheostat.cli",
    ]
    assert home("rheostat.run.engine.Engine") == "rheostat.run.engine"
    assert home("rheostat.trace") == "rheostat"
    assert room("rheostat.train.fit") == "train"
    assert room("rheostat.cost") == "core"
    assert module_name(SOURCE / "run" / "engine.py") == "rheostat.run.engine"
    assert module_name(SOURCE / "train" / "__init__.py") == "rheostat.train"
