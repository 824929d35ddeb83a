"""The artifact: a program and its tensors as one .safetensors file (docs/format.md), trusted only when checked."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rheostat import encodings
from rheostat.program import LEVELS, MAX_BIAS, Conv2d, Linear, Program, Shapes
from rheostat.program_check import validate
from rheostat.program_json import check_name, dump_json, from_json, load_json, to_json
from rheostat.spec import ArtifactError

FORMAT = "rheostat"
MAX_HEADER = 16 * 2**20  # bytes
MAX_TENSORS = 65_536
MAX_DATA = 16 * 2**30  # bytes: a file is read into memory, so a hole of a terabyte must not be
MAX_DIMS = 8
MAX_SPARSE = 2**24  # weights with levels in a file; a larger file may have ...
MAX_WEIGHTS_PER_BYTE = 32  # ... this many for each byte, so that a few bytes do not become gigabytes
STALE_S = 3_600  # a temporary file this old was left by a crash

_DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class _Entry:
    """One tensor of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write(path: str | os.PathLike[str], program: Program, tensors: Mapping[str, np.ndarray]) -> None:
    """Write an artifact: the same program and tensors always give the same bytes.

    A tensor NAME has levels where there is a uint8 tensor NAME@levels of its shape: subnet k keeps the weights of level
    <= k, and the number of subnets stands for "none of them"; those weights must be zero. What the subnets keep is
    stored once, with the levels in the encoding that takes the fewest bytes. A weight outside a subnet's widths gets
    the level of the first subnet that holds it, so that its level alone says who uses it.

    The file appears whole or not at all: it is written and synced beside `path`, then renamed over it. When anything
    fails (the disk is full, the directory read-only, a weight not finite) `ArtifactError` is raised, the old
    file is as it was and nothing is left behind. `program.sha256` and `program.levels` are computed here.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise ArtifactError(f"{path}: not written: a folder or a device is there; want a file or a new name")
    try:
        program, stored = _encoded(program, tensors)
        arrays = {check_name(name, "tensor"): _plain(name, stored[name]) for name in sorted(stored)}
        entries, position = [], 0
        for name, (dtype, array) in arrays.items():
            entries.append(_Entry(name, dtype, array.shape, position, position + array.nbytes))
            position += array.nbytes
        chunks = [(e, arrays[e.name][1].reshape(-1).view(np.uint8).data) for e in entries]
        text = to_json(replace(program, sha256=_hash(chunks)))
        header = _header(text, entries)
        # What is about to be written passes exactly the checks that reading it would.
        read_back, checked, _ = _parse(header[8:], len(header) + position)
        _check_tensors(read_back, _decoded(read_back, {e.name: arrays[e.name][1] for e in checked}))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: not written: {error}") from None
    try:
        _replace(target, [header, *(data for _, data in chunks)])
    except OSError as error:
        raise ArtifactError(
            f"{path}: not written: {error.strerror or error}; what was there before is unchanged"
        ) from error


def read(path: str | os.PathLike[str]) -> tuple[Program, dict[str, np.ndarray]]:
    """Read and check all of an artifact: header, hashes, every number, and the program against the tensors.

    Returns the program and the tensors by name, as read-only arrays over one buffer; a tensor with levels is whole,
    with zeros where no subnet keeps it, and its levels are there as NAME@levels. Any defect raises `ArtifactError`,
    before memory beyond the file's own size is used (with levels, beyond a fixed multiple of it).
    """
    with _opened(path) as (file, size):
        program, entries, _ = _parse(_read_header(file, size), size)
        want = entries[-1].end if entries else 0
        buffer = file.read(want + 1)
        if len(buffer) != want:
            raise ArtifactError(f"got {len(buffer)} bytes of tensors; want {want}")
        view = memoryview(buffer)
        by_name = sorted(entries, key=lambda e: e.name)
        got = _hash((e, view[e.begin : e.end]) for e in by_name)
        if got != program.sha256:
            raise ArtifactError(f"the tensors' SHA-256 is {got}; want {program.sha256}: the file is damaged")
        tensors = _decoded(program, {e.name: _array(e, view[e.begin : e.end]) for e in by_name})
        _check_tensors(program, tensors)
        return program, tensors


def read_header(path: str | os.PathLike[str]) -> tuple[Program, Shapes]:
    """Read and check the header only: the program, its hash, and that it fits the tensors' names, dtypes and shapes.

    Returns the program and the (dtype, shape) of each tensor as `read` returns it. The tensors' bytes are not read:
    their hash and their numbers are not checked. `read` checks them.
    """
    with _opened(path) as (file, size):
        program, _, shapes = _parse(_read_header(file, size), size)
        return program, shapes


def read_program(path: str | os.PathLike[str]) -> Program:
    """The program alone, checked as `read_header` checks it."""
    return read_header(path)[0]


# ---- Reading ----


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size; any error inside comes out as an `ArtifactError` that names the path."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"artifact: got a {type(path).__name__}; want the path of a file, as rheostat.save writes it"
        )
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ArtifactError("want a regular file")
        with _uncollected(), open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise ArtifactError(f"{path}: not enough memory to read it") from None


def _read_header(file: BinaryIO, size: int) -> bytes:
    prefix = file.read(8)
    if len(prefix) != 8:
        raise ArtifactError(f"got {size} bytes; want at least the 8 bytes of the header's length")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, size - 8):
        raise ArtifactError(f"header length: got {length}; want at most {min(MAX_HEADER, size - 8)}")
    header = file.read(length)
    if len(header) != length:
        raise ArtifactError(f"got {len(header)} bytes of header; want {length}")
    return header


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector away: no cycle is made, and it would look again and again at all else the process holds."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _parse(header: bytes, size: int) -> tuple[Program, list[_Entry], Shapes]:
    """The checked program, the tensors in the order of their bytes, and the shapes of those that they are decoded to.

    From a header and the size of the whole file.
    """
    if header[:1] != b"{":
        raise ArtifactError(f"header: got {header[:1]!r}; want it to begin with '{{'")
    try:
        table = load_json(header.decode(), "header")
    except UnicodeDecodeError:
        raise ArtifactError("header: not UTF-8") from None
    if type(table) is not dict:
        raise ArtifactError("header: want one JSON object")
    metadata = table.pop("__metadata__", None)
    if type(metadata) is not dict or metadata.get("format") != FORMAT:
        raise ArtifactError(
            f'header: no "format":"{FORMAT}" in __metadata__; this is no artifact of rheostat.save'
        )
    if set(metadata) != {"format", "program", "sha256"} or any(type(v) is not str for v in metadata.values()):
        raise ArtifactError("header.__metadata__: want the texts format, program and sha256, nothing else")
    if len(table) > MAX_TENSORS:
        raise ArtifactError(f"header: got {len(table)} tensors; want at most {MAX_TENSORS}")
    entries = sorted((_entry(name, item) for name, item in table.items()), key=lambda e: (e.begin, e.end))
    position = 0
    for e in entries:
        if e.begin != position:
            raise ArtifactError(
                f"tensor {e.name}: begins at {e.begin}; want {position}, without gap or overlap"
            )
        position = e.end
    if position != size - 8 - len(header):
        raise ArtifactError(
            f"the tensors end at {position}; want {size - 8 - len(header)}, the end of the file"
        )
    text = metadata["program"]
    try:
        digest = hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError:
        raise ArtifactError("header.__metadata__.program: not valid Unicode") from None
    if digest != metadata["sha256"]:
        raise ArtifactError(
            f"the program's SHA-256 is {digest}; want {metadata['sha256']!r:.80}: the file is damaged"
        )
    program = from_json(text)
    shapes = _whole_shapes(program, {e.name: (e.dtype, e.shape) for e in entries}, position)
    validate(program, shapes)
    return program, entries, shapes


def _whole_shapes(program: Program, stored: Shapes, num_bytes: int) -> Shapes:
    """The shapes of the decoded tensors, after checking what is stored of those with levels."""
    whole, total = dict(stored), 0
    for name, code in program.levels.items():
        where, num_kept = f"program.levels[{name!r}]", sum(code.counts)
        if name not in stored or stored[name][1] != (num_kept,):
            got = list(stored[name][1]) if name in stored else "no tensor"
            raise ArtifactError(f"{where}: {name} is {got}; want the {num_kept} kept weights as [{num_kept}]")
        if (got := stored.get(name + LEVELS)) != ("U8", (code.index_bytes,)):
            raise ArtifactError(f"{where}: {name}{LEVELS} is {got}; want U8 [{code.index_bytes}]")
        whole[name], whole[name + LEVELS] = (stored[name][0], code.shape), ("U8", code.shape)
        total += math.prod(code.shape)
    for name in stored:
        if name.endswith(LEVELS) and name.removesuffix(LEVELS) not in program.levels:
            raise ArtifactError(
                f"tensor {name}: program.levels says nothing of it; want it there, or another name"
            )
    if total > (limit := max(MAX_SPARSE, MAX_WEIGHTS_PER_BYTE * num_bytes)):
        raise ArtifactError(f"program.levels: {total} weights; want at most {limit} in {num_bytes} bytes")
    return whole


def _entry(name: str, item: object) -> _Entry:
    check_name(name, "tensor")
    where = f"tensor {name}"
    if type(item) is not dict or set(item) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{where}: want the keys dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise ArtifactError(f"{where}: got dtype {dtype!r:.40}; want one of {', '.join(_DTYPES)}")
    if type(shape) is not list or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise ArtifactError(
            f"{where}: got shape {shape!r:.80}; want at most {MAX_DIMS} integers of at least 0"
        )
    if type(offsets) is not list or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise ArtifactError(f"{where}: got data_offsets {offsets!r:.80}; want two integers of at least 0")
    begin, end = offsets
    num_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
    # Without its zeros: of a tensor without elements numpy, too, multiplies all other sizes.
    largest = math.prod(n or 1 for n in shape) * _DTYPES[dtype].itemsize
    if any(n > MAX_DATA for n in (largest, begin, end)):
        raise ArtifactError(f"{where}: shape and offsets reach beyond the limit of {MAX_DATA} bytes")
    if end - begin != num_bytes:
        raise ArtifactError(
            f"{where}: {dtype} {shape} takes {num_bytes} bytes; data_offsets hold {end - begin}"
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _array(entry: _Entry, data: memoryview) -> np.ndarray:
    array = np.frombuffer(data, _DTYPES[entry.dtype]).reshape(entry.shape)
    if not array.flags.aligned:  # an odd number of bytes came before it
        array = array.copy()
        array.flags.writeable = False
    return array


def _decoded(program: Program, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as `read` returns them."""
    tensors = dict(stored)
    for name, code in program.levels.items():
        try:
            levels = encodings.decode(code, stored[name + LEVELS])
        except ArtifactError as error:
            raise ArtifactError(f"tensor {name}{LEVELS} ({code.encoding}): {error}") from None
        whole, start = np.zeros(code.shape, stored[name].dtype), 0
        for k, count in enumerate(code.counts):
            whole[levels == k] = stored[name][start : start + count]
            start += count
        tensors[name], tensors[name + LEVELS] = whole, levels
        whole.flags.writeable = levels.flags.writeable = False
    if program.levels:
        for name, levels in _raised(program, tensors).items():
            if (levels != tensors[name + LEVELS]).any():
                raise ArtifactError(f"tensor {name}{LEVELS}: a subnet keeps a weight outside its widths")
    return tensors


def _raised(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The levels of every tensor that has some, none below the first subnet whose widths hold the weight."""
    levels = {n.removesuffix(LEVELS): array for n, array in tensors.items() if n.endswith(LEVELS)}
    firsts: dict[str, np.ndarray] = {}
    for op in program.ops or ():
        if isinstance(op, (Conv2d, Linear)) and op.weight in levels:
            first = first_subnets(op, program, tensors[op.weight].shape)
            firsts[op.weight] = np.minimum(first, firsts.get(op.weight, first))
    return {n: np.maximum(array, firsts[n]) if n in firsts else array for n, array in levels.items()}


def first_subnets(op: Conv2d | Linear, program: Program, shape: tuple[int, ...]) -> np.ndarray:
    """For each weight of `op` the first subnet that has both its channels; their number where none has."""
    x, out = (
        np.concatenate(
            [np.searchsorted(s.kept, np.arange(s.full), "right").astype(np.uint8) for s in v.channels]
        )
        for v in (program.values[op.input], program.values[op.output])
    )
    if isinstance(op, Linear):
        return np.maximum(out[:, None], np.repeat(x, shape[1] // len(x)))
    groups = len(x) // shape[1]
    inputs = x.reshape(groups, -1).repeat(len(out) // groups, axis=0)
    return np.broadcast_to(np.maximum(out[:, None], inputs)[:, :, None, None], shape)


def _check_tensors(program: Program, tensors: Mapping[str, np.ndarray]) -> None:
    """Every number finite, every boolean 0 or 1, every variance at least 0."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not _all_finite(array):
            raise ArtifactError(f"tensor {name}: holds NaN or infinity; want finite numbers")
        if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise ArtifactError(f"tensor {name}: holds a boolean that is neither 0 nor 1")
    for i, op in enumerate(program.ops or ()):
        for name in getattr(getattr(op, "norm", None), "var", ()):
            if tensors[name].min(initial=0) < 0:
                raise ArtifactError(f"program.ops[{i}] ({op.op}): {name} holds a negative variance")
    for i, own in enumerate(program.quant.ops if program.quant is not None else ()):
        for name in own.bias or ():
            if _outside(tensors[name], -MAX_BIAS, MAX_BIAS):
                raise ArtifactError(f"program.quant.ops[{i}]: {name} holds a number beyond {MAX_BIAS}")
        for k, name in enumerate(own.table or ()):
            assert program.quant is not None and program.ops is not None
            low = program.quant.low(program.ops[i].output)
            if _outside(tensors[name], low, own.high[k]):
                raise ArtifactError(
                    f"program.quant.ops[{i}]: {name} holds a number outside [{low}, {own.high[k]}]"
                )


def _outside(array: np.ndarray, low: int, high: int) -> bool:
    return bool(array.min(initial=high) < low or array.max(initial=low) > high)


def _all_finite(array: np.ndarray) -> bool:
    """`np.isfinite(array).all()` in pieces, so that a large tensor needs no mask of its size."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + 2**20]).all() for i in range(0, flat.size, 2**20))


def _hash(chunks: Iterable[tuple[_Entry, memoryview]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, sorted by name (docs/format.md, "Hashes")."""
    digest = hashlib.sha256()
    for e, data in chunks:
        digest.update(dump_json([e.name, e.dtype, list(e.shape)]).encode() + b"\n")
        digest.update(data)
    return digest.hexdigest()


# ---- Writing ----


def with_levels(program: Program, tensors: Mapping[str, np.ndarray]) -> Program:
    """The program with `levels` as `write` would write them: with them `cost.counted` counts kept weights only."""
    return _encoded(program, tensors)[0]


def _encoded(program: Program, tensors: Mapping[str, np.ndarray]) -> tuple[Program, dict[str, np.ndarray]]:
    """The program with its `levels`, and the tensors as they are stored; `_decoded` is the way back."""
    stored, program = dict(tensors), replace(program, levels={})
    pruned = sorted(name.removesuffix(LEVELS) for name in tensors if name.endswith(LEVELS))
    if not pruned:
        return program, stored
    num_subnets = len(program.subnets)
    for name in pruned:
        levels = np.asarray(tensors[name + LEVELS])
        if name not in tensors or levels.dtype != np.uint8 or levels.shape != np.shape(tensors[name]):
            of = f"{name} {list(np.shape(tensors[name]))}" if name in tensors else f"{name}, which is missing"
            raise ArtifactError(
                f"tensor {name}{LEVELS}: got {levels.dtype} {list(levels.shape)}; want uint8 of the shape of {of}"
            )
        if levels.size == 0 or levels.max() > num_subnets:
            raise ArtifactError(
                f"tensor {name}{LEVELS}: want levels from 0 to {num_subnets} of at least one weight"
            )
        if np.asarray(tensors[name])[levels == num_subnets].any():
            raise ArtifactError(f"tensor {name}: a weight that no subnet keeps is not zero")
    validate(program, {name: (_plain(name, array)[0], np.shape(array)) for name, array in tensors.items()})
    for name, levels in _raised(program, tensors).items():
        code = encodings.codes(levels, num_subnets)[0]
        whole = np.asarray(tensors[name])
        stored[name] = np.concatenate([whole[levels == k] for k in range(num_subnets)])
        stored[name + LEVELS] = encodings.encode(code, levels)
        program = replace(program, levels={**program.levels, name: code})
    return program, stored


def _plain(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """The safetensors dtype, and the array contiguous and little-endian."""
    array = np.asarray(array)
    little = array.dtype.newbyteorder("<")
    for dtype, known in _DTYPES.items():
        if little == known:
            return dtype, np.ascontiguousarray(array, known).reshape(array.shape)
    raise ArtifactError(
        f"tensor {name}: got dtype {array.dtype}; want one of {', '.join(map(str, _DTYPES.values()))}"
    )


def _header(text: str, entries: list[_Entry]) -> bytes:
    """The length and the JSON, padded with spaces so that the tensors begin at a multiple of 8."""
    table: dict[str, object] = {
        e.name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]} for e in entries
    }
    table["__metadata__"] = {
        "format": FORMAT,
        "program": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    header = dump_json(table).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise ArtifactError(f"the header takes {len(header)} bytes; want at most {MAX_HEADER}")
    return struct.pack("<Q", len(header)) + header


def _replace(target: str, chunks: list[bytes | memoryview]) -> None:
    """Write `chunks` to a new file beside `target`, sync it, rename it over `target` and sync the directory."""
    directory, name = os.path.split(target)
    _remove_stale(directory, name)
    temporary = os.path.join(directory, f".{_cut(name)}.{secrets.token_hex(8)}.tmp")
    file = os.fdopen(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb"
    )
    try:
        with file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # the file is in place; not every system can sync a directory
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _cut(name: str) -> str:
    """As much of a name as leaves room for more in one of 255 bytes, which file systems allow."""
    return name.encode(errors="ignore")[:200].decode(errors="ignore")


def _remove_stale(directory: str, name: str) -> None:
    """Remove temporary files of `name` that a crash left; a young one may belong to another process at work."""
    pattern = re.compile(re.escape(f".{_cut(name)}.") + r"[0-9a-f]{16}\.tmp")
    for path in Path(directory).iterdir():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > STALE_S:
                    path.unlink()
