"""One network, many operating points, one dial.

The public names, resolved when they are first used, so that `import rheostat` and the running half need numpy alone.
"""

from __future__ import annotations

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

# Bound here rather than lazily: the submodule has the same name as the function, and the function is the public one.
from rheostat.cost import cost

if TYPE_CHECKING:
    from rheostat.energy import Memory, switch_cost
    from rheostat.measure import accuracy, calibrate, engine_ms, latency
    from rheostat.run.engine import Engine
    from rheostat.run.export_c import export_c
    from rheostat.run.governor import Cap, EnergyGovernor, LatencyGovernor, SystemGovernor
    from rheostat.run.policy import (
        CapSlack,
        Decision,
        Fixed,
        Observation,
        Profile,
        Signals,
        arrival_rate,
        choose,
    )
    from rheostat.run.signals import read_signals
    from rheostat.sizes import size_report
    from rheostat.spec import (
        NM,
        ArtifactError,
        Block,
        Channel,
        Column,
        Cost,
        Element,
        Kernel,
        Pattern,
        Quant,
        Row,
        Subnet,
        SubnetInfo,
    )
    from rheostat.train.admm import admm, gradual
    from rheostat.train.criteria import taylor, wanda
    from rheostat.train.data import ImageLoader
    from rheostat.train.export import export_onnx
    from rheostat.train.fit import evaluate, fit, recalibrate
    from rheostat.train.graph import trace
    from rheostat.train.lasso import Lasso, multi_path, single_path
    from rheostat.train.lower import save
    from rheostat.train.masks import Levels, cubic, levels, magnitude, mask
    from rheostat.train.nested import fit_nested
    from rheostat.train.quant import finetune, quantize
    from rheostat.train.sample import nest, uniform
    from rheostat.train.slim import slim
    from rheostat.train.supernet import Supernet

__all__ = [  # noqa: RUF022  (sorted plainly; the rule takes NM for a constant)
    "ArtifactError",
    "Block",
    "Cap",
    "CapSlack",
    "Channel",
    "Column",
    "Cost",
    "Decision",
    "Element",
    "EnergyGovernor",
    "Engine",
    "Fixed",
    "ImageLoader",
    "Kernel",
    "Lasso",
    "LatencyGovernor",
    "Levels",
    "Memory",
    "NM",
    "Observation",
    "Pattern",
    "Profile",
    "Quant",
    "Row",
    "Signals",
    "Subnet",
    "SubnetInfo",
    "Supernet",
    "SystemGovernor",
    "accuracy",
    "admm",
    "arrival_rate",
    "calibrate",
    "choose",
    "cost",
    "cubic",
    "engine_ms",
    "evaluate",
    "export_c",
    "export_onnx",
    "finetune",
    "fit",
    "fit_nested",
    "gradual",
    "latency",
    "levels",
    "magnitude",
    "mask",
    "multi_path",
    "nest",
    "quantize",
    "read_signals",
    "recalibrate",
    "save",
    "single_path",
    "size_report",
    "slim",
    "switch_cost",
    "taylor",
    "trace",
    "uniform",
    "wanda",
]

_HOMES = {
    "ArtifactError": "rheostat.spec",
    "Block": "rheostat.spec",
    "Cap": "rheostat.run.governor",
    "CapSlack": "rheostat.run.policy",
    "Channel": "rheostat.spec",
    "Column": "rheostat.spec",
    "Cost": "rheostat.spec",
    "Decision": "rheostat.run.policy",
    "Element": "rheostat.spec",
    "EnergyGovernor": "rheostat.run.governor",
    "Engine": "rheostat.run.engine",
    "Fixed": "rheostat.run.policy",
    "ImageLoader": "rheostat.train.data",
    "Kernel": "rheostat.spec",
    "Lasso": "rheostat.train.lasso",
    "LatencyGovernor": "rheostat.run.governor",
    "Levels": "rheostat.train.masks",
    "Memory": "rheostat.energy",
    "NM": "rheostat.spec",
    "Observation": "rheostat.run.policy",
    "Pattern": "rheostat.spec",
    "Profile": "rheostat.run.policy",
    "Quant": "rheostat.spec",
    "Row": "rheostat.spec",
    "Signals": "rheostat.run.policy",
    "Subnet": "rheostat.spec",
    "SubnetInfo": "rheostat.spec",
    "Supernet": "rheostat.train.supernet",
    "SystemGovernor": "rheostat.run.governor",
    "accuracy": "rheostat.measure",
    "admm": "rheostat.train.admm",
    "arrival_rate": "rheostat.run.policy",
    "calibrate": "rheostat.measure",
    "choose": "rheostat.run.policy",
    "cubic": "rheostat.train.masks",
    "engine_ms": "rheostat.measure",
    "evaluate": "rheostat.train.fit",
    "export_c": "rheostat.run.export_c",
    "export_onnx": "rheostat.train.export",
    "finetune": "rheostat.train.quant",
    "fit": "rheostat.train.fit",
    "fit_nested": "rheostat.train.nested",
    "gradual": "rheostat.train.admm",
    "latency": "rheostat.measure",
    "levels": "rheostat.train.masks",
    "magnitude": "rheostat.train.masks",
    "mask": "rheostat.train.masks",
    "multi_path": "rheostat.train.lasso",
    "nest": "rheostat.train.sample",
    "quantize": "rheostat.train.quant",
    "read_signals": "rheostat.run.signals",
    "recalibrate": "rheostat.train.fit",
    "save": "rheostat.train.lower",
    "single_path": "rheostat.train.lasso",
    "size_report": "rheostat.sizes",
    "slim": "rheostat.train.slim",
    "switch_cost": "rheostat.energy",
    "taylor": "rheostat.train.criteria",
    "trace": "rheostat.train.graph",
    "uniform": "rheostat.train.sample",
    "wanda": "rheostat.train.criteria",
}

# import name of a library that is not required -> its own name, and the extra that brings it
_OPTIONAL = {
    "matplotlib": ("Matplotlib", "plot"),
    "onnx": ("ONNX", "export"),
    "rich": ("Rich", "train"),
    "safetensors": ("safetensors", "train"),
    "torch": ("PyTorch", "train"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rheostat' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _OPTIONAL:
            raise
        library, extra = _OPTIONAL[missing]
        raise ImportError(f'rheostat.{name} needs {library}: pip install "rheostat[{extra}]"') from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
