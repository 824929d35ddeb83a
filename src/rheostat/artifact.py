"""The artifact: a program and its tensors as one .safetensors file (docs/format.md), trusted only when checked."""

from __future__ import annotations

import contextlib
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

from rheostat.program import (
    MAX_BIAS,
    Program,
    Shapes,
    check_name,
    dump_json,
    from_json,
    load_json,
    to_json,
    validate,
)
from rheostat.spec import ArtifactError

FORMAT = "rheostat"
MAX_HEADER = 16 * 2**20  # bytes
MAX_TENSORS = 65_536
MAX_DATA = 16 * 2**30  # bytes: a file is read into memory, so a hole of a terabyte must not be
MAX_DIMS = 8
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

    The file appears whole or not at all: it is written and synced beside `path`, then renamed over it. When anything
    fails (the disk is full, the directory read-only, a weight not finite) `ArtifactError` is raised, the old
    file is as it was and nothing is left behind. `program.sha256` is computed here.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise ArtifactError(f"{path}: not written: a folder or a device is there; want a file or a new name")
    try:
        arrays = {check_name(name, "tensor"): _plain(name, tensors[name]) for name in sorted(tensors)}
        entries, position = [], 0
        for name, (dtype, array) in arrays.items():
            entries.append(_Entry(name, dtype, array.shape, position, position + array.nbytes))
            position += array.nbytes
        chunks = [(e, arrays[e.name][1].reshape(-1).view(np.uint8).data) for e in entries]
        text = to_json(replace(program, sha256=_hash(chunks)))
        header = _header(text, entries)
        # What is about to be written passes exactly the checks that reading it would.
        read_back, checked = _parse(header[8:], len(header) + position)
        _check_tensors(read_back, {e.name: arrays[e.name][1] for e in checked})
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

    Returns the program and the stored tensors by name, as read-only arrays over one buffer. Any defect raises
    `ArtifactError`, before memory beyond the file's own size is used.
    """
    with _opened(path) as (file, size):
        program, entries = _parse(_read_header(file, size), size)
        want = entries[-1].end if entries else 0
        buffer = file.read(want + 1)
        if len(buffer) != want:
            raise ArtifactError(f"got {len(buffer)} bytes of tensors; want {want}")
        view = memoryview(buffer)
        by_name = sorted(entries, key=lambda e: e.name)
        got = _hash((e, view[e.begin : e.end]) for e in by_name)
        if got != program.sha256:
            raise ArtifactError(f"the tensors' SHA-256 is {got}; want {program.sha256}: the file is damaged")
        tensors = {e.name: _array(e, view[e.begin : e.end]) for e in by_name}
        _check_tensors(program, tensors)
        return program, tensors


def read_header(path: str | os.PathLike[str]) -> tuple[Program, Shapes]:
    """Read and check the header only: the program, its hash, and that it fits the tensors' names, dtypes and shapes.

    Returns the program and the (dtype, shape) of each tensor. The tensors' bytes are not read: their hash and their
    numbers are not checked. `read` checks them.
    """
    with _opened(path) as (file, size):
        program, entries = _parse(_read_header(file, size), size)
        return program, {e.name: (e.dtype, e.shape) for e in entries}


def read_program(path: str | os.PathLike[str]) -> Program:
    """The program alone, checked as `read_header` checks it."""
    return read_header(path)[0]


# ---- Reading ----


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size; any error inside comes out as an `ArtifactError` that names the path."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ArtifactError("want a regular file")
        with open(path, "rb") as file:
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


def _parse(header: bytes, size: int) -> tuple[Program, list[_Entry]]:
    """The checked program and the tensors in the order of their bytes, from a header and the size of the whole file."""
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
    validate(program, {e.name: (e.dtype, e.shape) for e in entries})
    return program, entries


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
    if any(n > MAX_DATA for n in (*shape, begin, end, num_bytes)):
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
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
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


def _remove_stale(directory: str, name: str) -> None:
    """Remove temporary files of `name` that a crash left; a young one may belong to another process at work."""
    pattern = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{16}\.tmp")
    for path in Path(directory).iterdir():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > STALE_S:
                    path.unlink()
