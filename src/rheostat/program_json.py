"""A program as one JSON text: strict types, exact keys, bounded sizes; written back in one spelling."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import pairwise
from types import NoneType
from typing import Any, NoReturn

import numpy as np

from rheostat.program import (
    ACTIVATIONS,
    ENCODINGS,
    LEVELS,
    MAX_INT,
    MAX_SHIFT,
    MAX_WINDOW,
    OPS,
    Group,
    Input,
    LevelCode,
    Norm,
    Op,
    Plan,
    Program,
    Quantization,
    QuantOp,
    Segment,
    Value,
)
from rheostat.spec import ArtifactError, SubnetInfo, refuse

VERSION = 1  # of a program of floats
VERSION_QUANT = 2  # of one with a section `quant`
VERSION_LEVELS = 3  # of one with a section `levels`, and `quant` or not
MAX_SUBNETS = 64
MAX_ITEMS = 8_192  # ops, values, groups, provenance entries
MAX_JSON_VALUES = 500_000  # bounds the time and memory of parsing
MAX_NAME = 256
MAX_TEXT = 4_096


def load_json(text: str, where: str) -> Any:
    """Parse JSON of bounded size and depth without duplicate keys, NaN or infinities, or raise `ArtifactError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise ArtifactError(f"{where}: the key {reprlib.repr(twice)} appears twice in one object")
        return found

    def constant(name: str) -> NoReturn:
        raise ArtifactError(f"{where}: got the number {name}; want a finite number")

    if (n := sum(text.count(mark) for mark in ",[{")) > MAX_JSON_VALUES:
        raise ArtifactError(f"{where}: got about {n} JSON values; want at most {MAX_JSON_VALUES}")
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ArtifactError(f"{where}: the JSON is nested too deeply") from None
    except ValueError as error:  # malformed JSON, an integer of thousands of digits
        raise ArtifactError(f"{where}: not JSON ({reprlib.repr(str(error))})") from None


def dump_json(data: object) -> str:
    r"""The one spelling of `data`: sorted keys, no spaces, ASCII.

    >>> dump_json({"b": [1.5, None], "a": "ü"})
    '{"a":"\\u00fc","b":[1.5,null]}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def check_name(name: object, where: str) -> str:
    """`name` if it is safe as a tensor's name: printable, at most 256 characters, nothing like a path."""
    if (
        type(name) is not str
        or not 1 <= len(name) <= MAX_NAME
        or not name.isprintable()
        or "/" in name
        or "\\" in name
        or ".." in name
    ):
        refuse(where, name, f"a printable name of 1 to {MAX_NAME} characters without '/', '\\' or '..'")
    return name


def _text(x: object, where: str) -> str:
    if type(x) is not str or len(x) > MAX_TEXT or not x.isprintable():
        refuse(where, x, f"one line of printable text, at most {MAX_TEXT} characters")
    return x


def _optional_text(x: object, where: str) -> str | None:
    return None if x is None else _text(x, where)


def _optional_name(x: object, where: str) -> str | None:
    return None if x is None else check_name(x, where)


def _int(x: object, where: str, low: int = 0, high: int = MAX_INT) -> int:
    if type(x) is not int or not low <= x <= high:
        refuse(where, x, f"an integer from {low} to {high}")
    return x


def _bool(x: object, where: str) -> bool:
    if type(x) is not bool:
        refuse(where, x, "true or false")
    return x


def _number(x: object, where: str) -> float:
    if type(x) not in (int, float):
        refuse(where, x, "a number")
    try:
        number = float(x)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        refuse(where, x, "a finite number")
    return number


def _list(x: object, where: str, low: int = 0, high: int = MAX_ITEMS) -> list[Any]:
    if type(x) is not list or not low <= len(x) <= high:
        refuse(where, x, f"a list of {low} to {high} items" if low != high else f"a list of {low} items")
    return x


def _ints(x: object, where: str, low: int = 0, count: tuple[int, int] = (0, MAX_ITEMS)) -> tuple[int, ...]:
    return tuple(_int(v, f"{where}[{i}]", low) for i, v in enumerate(_list(x, where, *count)))


def _pair(x: object, where: str, low: int) -> tuple[int, int]:
    a, b = _list(x, where, 2, 2)
    return _int(a, where, low, MAX_WINDOW), _int(b, where, low, MAX_WINDOW)


def _object(x: object, where: str, keys: tuple[str, ...]) -> list[Any]:
    """The values of exactly `keys`, in that order."""
    if type(x) is not dict:
        refuse(where, x, "an object with the keys " + ", ".join(keys))
    if missing := [k for k in keys if k not in x]:
        raise ArtifactError(f"{where}: the key {missing[0]!r} is missing")
    if len(x) != len(keys):
        unknown = next(k for k in x if k not in keys)
        raise ArtifactError(f"{where}: unknown key {reprlib.repr(unknown)}; want only {', '.join(keys)}")
    return [x[k] for k in keys]


def _map(x: object, where: str) -> dict[str, Any]:
    if type(x) is not dict or len(x) > MAX_ITEMS:
        refuse(where, x, f"an object of at most {MAX_ITEMS} entries")
    return x


def _names(x: object, where: str) -> tuple[str, ...]:
    return tuple(check_name(v, f"{where}[{i}]") for i, v in enumerate(_list(x, where, 1, MAX_SUBNETS)))


def _optional_names(x: object, where: str) -> tuple[str, ...] | None:
    return None if x is None else _names(x, where)


def _norm(x: object, where: str) -> Norm:
    weight, bias, mean, var, eps = _object(x, where, ("weight", "bias", "mean", "var", "eps"))
    eps = _number(eps, f"{where}.eps")
    if not 0 < eps <= 1:
        refuse(f"{where}.eps", eps, "a number above 0, at most 1")
    return Norm(
        _optional_names(weight, f"{where}.weight"),
        _optional_names(bias, f"{where}.bias"),
        _names(mean, f"{where}.mean"),
        _names(var, f"{where}.var"),
        eps,
    )


def _activation(x: object, where: str) -> str:
    if type(x) is not str or x not in ACTIVATIONS:
        refuse(where, x, "one of " + ", ".join(ACTIVATIONS))
    return x


_FIELDS: Mapping[str, Callable[[object, str], Any]] = {
    "input": _int,
    "output": lambda x, w: _int(x, w, 1),
    "inputs": lambda x, w: _ints(x, w, 0, (2, MAX_ITEMS)),
    "weight": check_name,
    "bias": _optional_name,
    "stride": lambda x, w: _pair(x, w, 1),
    "kernel": lambda x, w: _pair(x, w, 1),
    "dilation": lambda x, w: _pair(x, w, 1),
    "padding": lambda x, w: _pair(x, w, 0),
    "groups": lambda x, w: _ints(x, w, 1, (1, MAX_SUBNETS)),
    "norm": _norm,
    "activation": _activation,
    "add": lambda x, w: None if x is None else _int(x, w),
    "ceil_mode": _bool,
    "count_include_pad": _bool,
}


_PARTS = {
    name: tuple((f.name, _FIELDS[f.name], f.default is None) for f in fields(c)) for name, c in OPS.items()
}


def _op(x: object, where: str) -> Op:
    if type(x) is not dict:
        refuse(where, x, "an object with the key op")
    name = x.get("op")
    if type(name) is not str or name not in OPS:
        refuse(f"{where}.op", name, "one of " + ", ".join(OPS))
    parts = _PARTS[name]
    given = _object(x, where, ("op", *(part for part, _, _ in parts)))[1:]
    values = {
        part: None if v is None and optional else read(v, f"{where}.{part}")
        for (part, read, optional), v in zip(parts, given, strict=True)
    }
    return OPS[name](**values)  # type: ignore[arg-type]  # each parser returns its field's type


def _value(x: object, where: str) -> Value:
    channels, space = _object(x, where, ("channels", "space"))
    segments = []
    for i, item in enumerate(_list(channels, f"{where}.channels", 1)):
        here = f"{where}.channels[{i}]"
        full, kept = _list(item, here, 2, 2)
        full = _int(full, here, 1)
        segments.append(Segment(full, _widths(kept, here, full)))
    space = _ints(space, f"{where}.space", 1, (0, 2))
    if len(space) == 1:
        refuse(f"{where}.space", list(space), "[] or [H, W]")
    return Value(tuple(segments), space)


def _widths(x: object, where: str, size: int) -> tuple[int, ...]:
    widths = tuple(_int(v, where, 1, size) for v in _list(x, where, 1, MAX_SUBNETS))
    if any(b < a for a, b in pairwise(widths)):
        refuse(where, list(widths), "widths that never decrease: every subnet contains the smaller ones")
    return widths


def _group(x: object, where: str) -> Group:
    name, size, widths, pinned = _object(x, where, ("name", "size", "widths", "pinned"))
    size = _int(size, f"{where}.size", 1)
    return Group(
        _text(name, f"{where}.name"),
        size,
        _widths(widths, f"{where}.widths", size),
        _optional_text(pinned, f"{where}.pinned"),
    )


def _subnet(x: object, where: str) -> SubnetInfo:
    name, parameters, macs, size_bytes, *measured = _object(
        x, where, tuple(f.name for f in fields(SubnetInfo))
    )
    accuracy, p50, p95 = (None if m is None else _number(m, where) for m in measured)
    if accuracy is not None and not 0 <= accuracy <= 1:
        refuse(f"{where}.accuracy", accuracy, "a fraction from 0 to 1")
    if any(latency is not None and latency < 0 for latency in (p50, p95)):
        refuse(where, [p50, p95], "latencies of at least 0 ms")
    parameters, macs, size_bytes = (_int(n, where, 0, 2**63 - 1) for n in (parameters, macs, size_bytes))
    return SubnetInfo(check_name(name, f"{where}.name"), parameters, macs, size_bytes, accuracy, p50, p95)


def _provenance(x: object, where: str) -> dict[str, str | int | float]:
    for key, value in _map(x, where).items():
        _text(key, f"{where} key")
        if type(value) is str:
            _text(value, f"{where}[{reprlib.repr(key)}]")
        else:
            _number(value, f"{where}[{reprlib.repr(key)}]")
    return dict(x)  # type: ignore[call-overload]


def _per_subnet(x: object, where: str, high: int = MAX_INT) -> tuple[int, ...]:
    return tuple(_int(v, f"{where}[{k}]", 0, high) for k, v in enumerate(_list(x, where, 1, MAX_SUBNETS)))


def _quant_op(x: object, where: str) -> QuantOp:
    high, shift, pre, factors, *names = _object(x, where, tuple(f.name for f in fields(QuantOp)))
    multiplier, bias, table = (_optional_names(n, where) for n in names)
    return QuantOp(
        _per_subnet(high, f"{where}.high"),
        _per_subnet(shift, f"{where}.shift", MAX_SHIFT),
        _per_subnet(pre, f"{where}.pre", 31),
        tuple(
            _ints(f, f"{where}.factors[{k}]")
            for k, f in enumerate(_list(factors, f"{where}.factors", 1, MAX_SUBNETS))
        ),
        multiplier,
        bias,
        table,
    )


def _quant(x: object, where: str) -> Quantization:
    bits_weights, bits_activations, unsigned, scales, ops = _object(
        x, where, tuple(f.name for f in fields(Quantization))
    )
    for name, bits in (("bits_weights", bits_weights), ("bits_activations", bits_activations)):
        if type(bits) is not int or bits not in (8, 16):
            refuse(f"{where}.{name}", bits, "8 or 16")
    found = []
    for v, each in enumerate(_list(scales, f"{where}.scales", 1)):
        here = f"{where}.scales[{v}]"
        found.append(tuple(_number(s, here) for s in _list(each, here, 1, MAX_SUBNETS)))
        for s in found[-1]:
            if not 1e-30 <= s <= 1e30 or float(np.float32(s)) != s:
                refuse(here, s, "a float32 from 1e-30 to 1e30")
    return Quantization(
        bits_weights,
        bits_activations,
        tuple(
            _bool(u, f"{where}.unsigned[{v}]") for v, u in enumerate(_list(unsigned, f"{where}.unsigned", 1))
        ),
        tuple(found),
        tuple(_quant_op(o, f"{where}.ops[{i}]") for i, o in enumerate(_list(ops, f"{where}.ops", 1))),
    )


def _levels(x: object, where: str, num_subnets: int) -> dict[str, LevelCode]:
    if not _map(x, where):
        refuse(where, x, "at least one tensor; a program without levels has no such key")
    found: dict[str, LevelCode] = {}
    for name, item in _map(x, where).items():
        here = f"{where}[{reprlib.repr(name)}]"
        check_name(name + LEVELS, f"{where} key")
        shape, encoding, group, counts, index_bytes = _object(
            item, here, tuple(f.name for f in fields(LevelCode))
        )
        shape = _ints(shape, f"{here}.shape", 1, (1, 8))
        size = math.prod(shape)
        if size > MAX_INT:
            refuse(f"{here}.shape", shape, f"at most {MAX_INT} weights")
        if type(encoding) is not str or encoding not in ENCODINGS:
            refuse(f"{here}.encoding", encoding, "one of " + ", ".join(ENCODINGS))
        group = _int(group, f"{here}.group", 1, size if encoding == "pattern" else 1)
        if size % group:
            refuse(f"{here}.group", group, f"a divisor of the {size} weights")
        counts = _ints(counts, f"{here}.counts", 0, (num_subnets, num_subnets))
        if sum(counts) > size:
            refuse(f"{here}.counts", counts, f"no more than the {size} weights together")
        index_bytes = _int(index_bytes, f"{here}.index_bytes")
        found[name] = LevelCode(shape, encoding, group, counts, index_bytes)
    return found


def from_json(text: str) -> Program:
    """Read a program, checking every field's type, range and key; `validate` checks what the fields mean together."""
    data = load_json(text, "program")
    version = data.get("version") if type(data) is dict else data
    known = (VERSION, VERSION_QUANT, VERSION_LEVELS)
    if type(data) is not dict or type(version) is not int or version not in known:
        refuse("program.version", version, "1, 2 or 3, the versions this release reads")
    keys = (
        "version", "model", "sha256", "producer", "input", "provenance", "subnets", "groups", "aliases", "values",
        "ops", "unsupported", "outputs", "plan",
    )  # fmt: skip
    if (section := {VERSION_QUANT: "quant", VERSION_LEVELS: "levels"}.get(version, "version")) not in data:
        raise ArtifactError(f"program: the key {section!r} is missing")
    quant = None
    if version != VERSION and "quant" in data:
        quant = _quant(data.pop("quant"), "program.quant")
    levels = data.pop("levels") if version == VERSION_LEVELS else None
    _, model, sha256, producer, given, provenance, *rest = _object(data, "program", keys)
    subnets, groups, aliases, values, ops, unsupported, outputs, plan = rest
    if type(sha256) is not str or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        refuse("program.sha256", sha256, "64 lower-case hexadecimal digits")
    name, shape = _object(given, "program.input", ("name", "shape"))
    size, offsets = _object(plan, "program.plan", ("size", "offsets"))

    def items(x: object, where: str, read: Callable[[object, str], Any], low: int = 0, high: int = MAX_ITEMS):
        return tuple(read(v, f"{where}[{i}]") for i, v in enumerate(_list(x, where, low, high)))

    return Program(
        model=_text(model, "program.model"),
        input=Input(check_name(name, "program.input.name"), _ints(shape, "program.input.shape", 1, (0, 8))),
        subnets=items(subnets, "program.subnets", _subnet, 1, MAX_SUBNETS),
        groups=items(groups, "program.groups", _group),
        values=items(values, "program.values", _value),
        ops=None if ops is None else items(ops, "program.ops", _op, 1),
        unsupported=_optional_text(unsupported, "program.unsupported"),
        outputs=_ints(outputs, "program.outputs"),
        plan=Plan(_int(size, "program.plan.size"), _ints(offsets, "program.plan.offsets")),
        aliases={
            check_name(k, "program.aliases key"): check_name(v, f"program.aliases[{k!r}]")
            for k, v in _map(aliases, "program.aliases").items()
        },
        provenance=_provenance(provenance, "program.provenance"),
        producer=_text(producer, "program.producer"),
        sha256=sha256,
        quant=quant,
        levels={} if version != VERSION_LEVELS else _levels(levels, "program.levels", len(subnets)),
    )


def to_json(program: Program) -> str:
    """The canonical text of a program: `to_json(from_json(t)) == t` for every `t` that `to_json` wrote.

    Raises ArtifactError for what JSON has no word for: a number of NumPy's, NaN.
    """

    def plain(x: object, where: str) -> Any:
        if isinstance(x, Segment):
            return [x.full, list(x.kept)]
        if isinstance(x, (tuple, list)):
            return [plain(v, f"{where}[{i}]") for i, v in enumerate(x)]
        if isinstance(x, Mapping):
            return {k: plain(v, f"{where}[{k!r}]") for k, v in x.items()}
        if hasattr(x, "__dataclass_fields__"):
            data = {f.name: plain(getattr(x, f.name), f"{where}.{f.name}") for f in fields(x)}  # type: ignore[arg-type]
            return {"op": x.op, **data} if isinstance(x, Op) else data
        if not isinstance(x, (str, int, float, NoneType)) or (isinstance(x, float) and not math.isfinite(x)):
            refuse(where, x, "text, or a finite int or float of Python's")
        return x

    data = plain(program, "program")
    version = VERSION if program.quant is None else VERSION_QUANT
    if program.quant is None:
        del data["quant"]
    if program.levels:
        version = VERSION_LEVELS
    else:
        del data["levels"]
    return dump_json({"version": version, **data})
