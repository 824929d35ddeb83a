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
    from rheostat.measure import calibrate, latency
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
    from rheostat.spec import ArtifactError, Cost, Quant, Subnet, SubnetInfo
    from rheostat.train.data import ImageLoader
    from rheostat.train.export import export_onnx
    from rheostat.train.fit import evaluate, fit, recalibrate
    from rheostat.train.graph import trace
    from rheostat.train.lasso import Lasso, multi_path, single_path
    from rheostat.train.lower import save
    from rheostat.train.quant import quantize
    from rheostat.train.sample import nest, uniform
    from rheostat.train.slim import slim
    from rheostat.train.supernet import Supernet

__all__ = [
    "ArtifactError",
    "Cap",
    "CapSlack",
    "Cost",
    "Decision",
    "EnergyGovernor",
    "Engine",
    "Fixed",
    "ImageLoader",
    "Lasso",
    "LatencyGovernor",
    "Observation",
    "Profile",
    "Quant",
    "Signals",
    "Subnet",
    "SubnetInfo",
    "Supernet",
    "SystemGovernor",
    "arrival_rate",
    "calibrate",
    "choose",
    "cost",
    "evaluate",
    "export_c",
    "export_onnx",
    "fit",
    "latency",
    "multi_path",
    "nest",
    "quantize",
    "read_signals",
    "recalibrate",
    "save",
    "single_path",
    "slim",
    "trace",
    "uniform",
]

_HOMES = {
    "ArtifactError": "rheostat.spec",
    "Cap": "rheostat.run.governor",
    "CapSlack": "rheostat.run.policy",
    "Cost": "rheostat.spec",
    "Decision": "rheostat.run.policy",
    "EnergyGovernor": "rheostat.run.governor",
    "Engine": "rheostat.run.engine",
    "Fixed": "rheostat.run.policy",
    "ImageLoader": "rheostat.train.data",
    "Lasso": "rheostat.train.lasso",
    "LatencyGovernor": "rheostat.run.governor",
    "Observation": "rheostat.run.policy",
    "Profile": "rheostat.run.policy",
    "Quant": "rheostat.spec",
    "Signals": "rheostat.run.policy",
    "Subnet": "rheostat.spec",
    "SubnetInfo": "rheostat.spec",
    "Supernet": "rheostat.train.supernet",
    "SystemGovernor": "rheostat.run.governor",
    "arrival_rate": "rheostat.run.policy",
    "calibrate": "rheostat.measure",
    "choose": "rheostat.run.policy",
    "evaluate": "rheostat.train.fit",
    "export_c": "rheostat.run.export_c",
    "export_onnx": "rheostat.train.export",
    "fit": "rheostat.train.fit",
    "latency": "rheostat.measure",
    "multi_path": "rheostat.train.lasso",
    "nest": "rheostat.train.sample",
    "quantize": "rheostat.train.quant",
    "read_signals": "rheostat.run.signals",
    "recalibrate": "rheostat.train.fit",
    "save": "rheostat.train.lower",
    "single_path": "rheostat.train.lasso",
    "slim": "rheostat.train.slim",
    "trace": "rheostat.train.graph",
    "uniform": "rheostat.train.sample",
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
