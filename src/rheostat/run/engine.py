"""The native engine: every subnet of an artifact on one set of packed weights."""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from rheostat import artifact
from rheostat.program import (
    LEVELS,
    Activation,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Mul,
    Norm,
    Normalize,
    Op,
    PadChannels,
    Program,
    QuantOp,
    Softmax,
    Subsample,
    Value,
)
from rheostat.spec import ArtifactError, SubnetInfo

Tensors = Mapping[str, np.ndarray]


class Engine:
    """Runs the subnets of an artifact, one at a time, from one copy of the weights.

    path: the artifact. threads: how many threads one call may use; None means all processors this process may use.
    The largest subnet is active at first. `engine(x)` takes float32 [N, C, H, W] (or [N, C] where the model takes
    vectors) and returns float32 [N, classes], or [N, C, H, W] where the model ends in an image; a tuple of arrays
    when the model has several outputs. One engine serves one call at a time, others wait; `fork()` gives each
    thread its own.

    Raises ArtifactError when the file cannot be trusted or holds an op that the engine has no kernel for,
    ValueError for an unknown subnet, an input of another shape or type, or an instruction set in RHEOSTAT_ISA that the
    processor lacks, MemoryError and OSError where there is not enough memory or no more threads.

    >>> rh.save(net, "dial.safetensors")
    >>> with Engine("dial.safetensors", threads=1) as engine:
    ...     engine.select("0.5")
    ...     engine(np.zeros((3, 4), np.float32)).shape
    (3, 2)
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        program, tensors = artifact.read(path)
        if program.ops is None:
            raise ArtifactError(
                f"{path}: the engine cannot run this model: {program.unsupported}. Load it with Supernet.load and take "
                "a subnet out with extract"
            )
        self._start(_Model(str(path), program, tensors), threads)

    def _start(self, model: _Model, threads: int | None) -> None:
        self._context: int | None = None
        self._lock = threading.Lock()
        _ENGINES.add(self)
        self._model = model
        self._threads = _check_threads(threads)
        self._active = len(model.info) - 1
        context = ctypes.c_void_p()
        status = model.library.rh_context_create(model.handle, self._threads, ctypes.byref(context))
        _check_status(model.library, status, f"{model.path}: starting {self._threads} threads")
        self._context = context.value

    def fork(self, threads: int | None = None) -> Engine:
        """Return another engine over the same packed weights, for another thread: own activations, own active subnet.

        threads: as for `Engine`; None means as many as this engine has.
        """
        other = Engine.__new__(Engine)
        other._start(self._model, self._threads if threads is None else threads)
        other._active = self._active
        return other

    @property
    def subnets(self) -> tuple[str, ...]:
        """The subnets' names, smallest first."""
        return tuple(self._model.names)

    @property
    def info(self) -> tuple[SubnetInfo, ...]:
        """What the artifact says about each subnet, smallest first."""
        return self._model.info

    @property
    def active(self) -> int:
        """Index of the active subnet."""
        return self._active

    @property
    def threads(self) -> int:
        """How many threads one call may use."""
        return self._threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, levels and norms included, of all subnets and all forks together."""
        return self._model.library.rh_model_weight_bytes(self._model.handle)

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use: "generic", "avx2", "avx512" or "avx512vnni"."""
        return self._model.isa

    def select(self, subnet: str | int) -> None:
        """Make `subnet`, a name or an index (-1 = the largest), the one that the next call runs.

        Changes one integer: no copy, no allocation. Raises ValueError for a subnet that does not exist.
        """
        try:
            if isinstance(subnet, str):
                self._active = self._model.names[subnet]
            else:
                self._active = self._model.indices[operator.index(subnet)]
        except (KeyError, IndexError, TypeError):
            names = ", ".join(map(repr, self._model.names))
            last = len(self._model.names) - 1
            raise ValueError(
                f"select: got {subnet!r}; want one of {names} or an index up to {last}"
            ) from None

    def __call__(self, x: np.ndarray) -> Any:
        """Run the active subnet on a batch."""
        model = self._model
        _check_input(x, model.input_shape)
        x = np.ascontiguousarray(x)
        with self._lock:
            if self._context is None:
                raise ValueError("Engine: it is closed; open the artifact again")
            subnet = self._active
            outputs = [np.empty((len(x), *shape), np.float32) for shape in model.output_shapes[subnet]]
            pointers = (ctypes.c_void_p * len(outputs))(*[y.ctypes.data for y in outputs])
            model.library.rh_select(self._context, subnet)
            status = model.library.rh_run(self._context, len(x), x.ctypes.data, pointers)
        assert status == 0, status
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def close(self) -> None:
        """Free the activations and stop the threads; the weights go with the last fork."""
        with self._lock:
            context, self._context = self._context, None
            if context is not None:
                self._model.library.rh_context_free(context)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """A copy would free what this engine still runs in."""
        raise TypeError("Engine: cannot be copied or pickled; use fork(), or open the artifact again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self.close()


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _new_locks() -> None:
    """In a forked process nobody is left to release the locks that other threads held."""
    for engine in _ENGINES:
        engine._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ValueError(f"threads: got {threads!r}; want 1 to 1024, or None for all processors")
    return threads


def _check_input(x: np.ndarray, shape: tuple[int, ...]) -> None:
    want = f"[N, {', '.join(map(str, shape))}]"
    if not isinstance(x, np.ndarray):
        raise ValueError(
            f"x: got {type(x).__name__}; want a numpy array float32 {want}; try numpy.asarray(x)"
        )
    if x.dtype != np.float32:
        raise ValueError(f"x: got {x.dtype}; want float32; convert with x.astype(numpy.float32)")
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        fix = "; add the batch dimension with x[None]" if x.shape == shape else ""
        raise ValueError(f"x: got {list(x.shape)}; want {want}{fix}")


# ---- the C ABI: csrc/include/rheostat.h, field by field ----

_INT = ctypes.c_int32
_INTS = ctypes.POINTER(_INT)
_HANDLE = ctypes.c_void_p
_ABI_VERSION = 3
_OUT_OF_MEMORY, _THREADS = 1, 5


class _ValueDesc(ctypes.Structure):
    _fields_ = (
        ("full", _INTS),
        ("kept", _INTS),
        ("num_segments", _INT),
        ("height", _INT),
        ("width", _INT),
        ("low", _INT),
        ("high", _INT),
    )


class _QuantDesc(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("multiplier", ctypes.POINTER(ctypes.c_void_p)),
        ("bias", ctypes.POINTER(ctypes.c_void_p)),
        ("table", ctypes.POINTER(ctypes.c_void_p)),
        ("factors", _INTS),
        ("num_factors", _INT),
        ("pre", _INTS),
        ("shift", _INTS),
        ("high", _INTS),
    )


class _OpDesc(ctypes.Structure):
    _fields_ = (
        ("kind", _INT),
        ("activation", _INT),
        ("inputs", _INTS),
        ("num_inputs", _INT),
        ("output", _INT),
        ("residual", _INT),
        ("kernel", _INT * 2),
        ("stride", _INT * 2),
        ("padding", _INT * 2),
        ("dilation", _INT * 2),
        ("count_include_pad", _INT),
        ("group_inputs", _INT),
        ("weight", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("weight_count", ctypes.c_int64),
        ("scale", ctypes.POINTER(ctypes.c_void_p)),
        ("shift", ctypes.POINTER(ctypes.c_void_p)),
        ("quant", _QuantDesc),
    )


class _ModelDesc(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.POINTER(_ValueDesc)),
        ("ops", ctypes.POINTER(_OpDesc)),
        ("outputs", _INTS),
        ("num_values", _INT),
        ("num_ops", _INT),
        ("num_outputs", _INT),
        ("num_subnets", _INT),
        ("weight_bits", _INT),
        ("input_scale", ctypes.c_void_p),
        ("output_scale", ctypes.c_void_p),
    )


_KINDS: Mapping[type[Op], int] = {
    Conv2d: 0,
    Linear: 0,
    Normalize: 1,
    Activation: 1,
    MaxPool2d: 2,
    AvgPool2d: 3,
    GlobalAvgPool: 4,
    Add: 5,
    Mul: 6,
    Concat: 7,
    Subsample: 8,
    PadChannels: 9,
    Softmax: 10,
}
_ACTIVATIONS: Mapping[str | None, int] = {
    None: 0,
    "relu": 1,
    "relu6": 2,
    "hardswish": 3,
    "hardsigmoid": 4,
    "sigmoid": 5,
    "silu": 6,
    "gelu": 7,
    "gelu_tanh": 8,
    "tanh": 9,
}


@functools.cache
def _library() -> Any:
    name = {"darwin": "librheostat.dylib", "win32": "rheostat.dll"}.get(sys.platform, "librheostat.so")
    path = Path(__file__).with_name(name)
    fix = "build it with `make`, or install the wheel of this platform again"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path}: the native library cannot be loaded ({error}); {fix}") from error
    version = library.rh_abi_version()
    if version != _ABI_VERSION:
        raise ImportError(f"{path}: got ABI version {version}; want {_ABI_VERSION}; {fix}")
    library.rh_status_text.restype = ctypes.c_char_p
    library.rh_model_build.argtypes = (ctypes.POINTER(_ModelDesc), ctypes.POINTER(_HANDLE), _INTS)
    library.rh_model_release.argtypes = (_HANDLE,)
    library.rh_model_release.restype = None
    library.rh_model_weight_bytes.argtypes = (_HANDLE,)
    library.rh_model_weight_bytes.restype = ctypes.c_int64
    library.rh_model_isa.argtypes = (_HANDLE,)
    library.rh_model_isa.restype = ctypes.c_char_p
    library.rh_context_create.argtypes = (_HANDLE, _INT, ctypes.POINTER(_HANDLE))
    library.rh_context_free.argtypes = (_HANDLE,)
    library.rh_context_free.restype = None
    library.rh_select.argtypes = (_HANDLE, _INT)
    library.rh_run.argtypes = (_HANDLE, ctypes.c_int64, _HANDLE, ctypes.POINTER(ctypes.c_void_p))
    return library


def _check_status(library: Any, status: int, where: str) -> None:
    if status == 0:
        return
    text = f"{where}: {library.rh_status_text(status).decode()}"
    if status == _OUT_OF_MEMORY:
        raise MemoryError(text)
    raise (OSError if status == _THREADS else ArtifactError)(text)


class _Model:
    """The packed weights and what Python needs to know of the program; immutable, shared by all forks."""

    def __init__(self, path: str, program: Program, tensors: Tensors) -> None:
        assert program.ops is not None
        self.handle: int | None = None
        self.library = _library()
        self.path = path
        self.info = program.subnets
        self.names = {info.name: k for k, info in enumerate(program.subnets)}
        self.indices = range(len(program.subnets))
        self.input_shape = program.input.shape
        outputs = [program.values[v] for v in program.outputs]
        self.output_shapes = [[(v.kept(k), *v.space) for v in outputs] for k in self.indices]
        desc = _Descriptors(program, tensors)
        handle, failed = ctypes.c_void_p(), _INT()
        status = self.library.rh_model_build(desc.model, ctypes.byref(handle), ctypes.byref(failed))
        where = f"{path}: op {failed.value} ({program.ops[failed.value].op})" if failed.value >= 0 else path
        _check_status(self.library, status, where)
        self.handle = handle.value
        self.isa = self.library.rh_model_isa(self.handle).decode()
        if (wanted := os.environ.get("RHEOSTAT_ISA") or self.isa) != self.isa:
            raise ValueError(
                f"Engine: got RHEOSTAT_ISA={wanted!r}; want 'generic' or another instruction set of this processor, "
                f"whose best is {self.isa!r}. Unset it."
            )

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.library.rh_model_release(self.handle)


class _Descriptors:
    """A program as the C ABI wants it; `_alive` owns whatever the structures point to."""

    def __init__(self, program: Program, tensors: Tensors) -> None:
        assert program.ops is not None
        self._alive: list[Any] = []
        self._tensors = tensors
        self._values = program.values
        self._num_subnets = len(program.subnets)
        self._quant = quant = program.quant
        values = (_ValueDesc * len(program.values))(*[self._value(v) for v in program.values])
        ops = (_OpDesc * len(program.ops))(*[self._op(op) for op in program.ops])
        if quant is not None:
            for v, value in enumerate(values):
                value.low, value.high = quant.low(v), quant.top(v)
            for op, own in zip(ops, quant.ops, strict=True):
                self._integers(op, own)
        self._alive += [values, ops]
        self.model = _ModelDesc(
            values=values,
            ops=ops,
            outputs=self._ints(program.outputs),
            num_values=len(values),
            num_ops=len(ops),
            num_outputs=len(program.outputs),
            num_subnets=self._num_subnets,
        )
        if quant is not None:
            self.model.weight_bits = quant.bits_weights
            self.model.input_scale = self._array(quant.scales[0], np.float32)
            self.model.output_scale = self._array([quant.scales[v] for v in program.outputs], np.float32)

    def _ints(self, numbers: Sequence[int]) -> Any:
        array = (_INT * len(numbers))(*numbers)
        self._alive.append(array)
        return array

    def _array(self, numbers: Any, dtype: type[np.generic]) -> int:
        array = np.ascontiguousarray(numbers, dtype)
        self._alive.append(array)
        return array.ctypes.data

    def _floats(self, array: np.ndarray) -> int:
        return self._array(array, np.float32)

    def _value(self, value: Value) -> _ValueDesc:
        height, width = value.space or (1, 1)
        return _ValueDesc(
            full=self._ints([s.full for s in value.channels]),
            kept=self._ints([s.kept[k] for k in range(self._num_subnets) for s in value.channels]),
            num_segments=len(value.channels),
            height=height,
            width=width,
        )

    def _op(self, op: Op) -> _OpDesc:
        inputs = op.inputs if isinstance(op, (Add, Mul, Concat)) else (op.input,)
        desc = _OpDesc(
            kind=_KINDS[type(op)],
            activation=_ACTIVATIONS[getattr(op, "activation", None)],
            inputs=self._ints(inputs),
            num_inputs=len(inputs),
            output=op.output,
            residual=-1,
        )
        if isinstance(op, (MaxPool2d, AvgPool2d)):
            desc.kernel[:], desc.stride[:], desc.padding[:] = op.kernel, op.stride, op.padding
            desc.count_include_pad = isinstance(op, AvgPool2d) and op.count_include_pad
        elif isinstance(op, Subsample):
            desc.stride[:] = op.stride
        elif isinstance(op, Normalize) and self._quant is None:
            self._epilogue(desc, self._values[op.output], None, op.norm)
        elif isinstance(op, (Conv2d, Linear)):
            self._weights(desc, op)
        return desc

    def _weights(self, desc: _OpDesc, op: Conv2d | Linear) -> None:
        """A linear layer is a convolution whose kernel covers its input: both flatten in the order C, H, W."""
        weight, source = self._tensors[op.weight], self._values[op.input]
        desc.weight_count = weight.size
        if op.weight + LEVELS in self._tensors:
            desc.levels = self._array(self._tensors[op.weight + LEVELS], np.uint8)
        if self._quant is None:
            desc.weight = self._floats(weight)
        else:
            desc.quant.weight = self._array(weight, np.int16)
        desc.residual = -1 if op.add is None else op.add
        if isinstance(op, Conv2d):
            desc.kernel[:], desc.group_inputs = weight.shape[2:], weight.shape[1]
            desc.stride[:], desc.padding[:], desc.dilation[:] = op.stride, op.padding, op.dilation
        else:
            desc.kernel[:], desc.group_inputs = source.space or (1, 1), source.full
            desc.stride[:], desc.dilation[:] = (1, 1), (1, 1)
        bias = None if op.bias is None else self._tensors[op.bias]
        self._epilogue(desc, self._values[op.output], bias, op.norm)

    def _epilogue(self, desc: _OpDesc, out: Value, bias: np.ndarray | None, norm: Norm | None) -> None:
        """Per subnet y = x * scale + shift, from the bias and the norm, in double precision until it is stored."""
        if norm is None and bias is not None:
            shared = self._floats(bias) if len(out.channels) == 1 else None
            shifts = [shared or self._floats(bias[out.indices(k)]) for k in range(self._num_subnets)]
            desc.shift = self._pointers(shifts)
        elif norm is not None:
            scales, shifts = [], []
            for k in range(self._num_subnets):
                weight, offset, mean, var = (
                    None if names is None else self._tensors[names[k]].astype(np.float64)
                    for names in (norm.weight, norm.bias, norm.mean, norm.var)
                )
                assert mean is not None and var is not None
                scale = (1.0 if weight is None else weight) / np.sqrt(var + norm.eps)
                before = 0.0 if bias is None else bias[out.indices(k)].astype(np.float64)
                scales.append(self._floats(scale))
                shifts.append(self._floats((before - mean) * scale + (0.0 if offset is None else offset)))
            desc.scale, desc.shift = self._pointers(scales), self._pointers(shifts)

    def _integers(self, desc: _OpDesc, own: QuantOp) -> None:
        quant = desc.quant
        for part, names, dtype in (
            ("multiplier", own.multiplier, np.int32),
            ("bias", own.bias, np.int64),
            ("table", own.table, np.int16),
        ):
            if names is not None:
                setattr(quant, part, self._pointers([self._array(self._tensors[n], dtype) for n in names]))
        quant.num_factors = len(own.factors[0])
        quant.factors = self._ints([f for factors in own.factors for f in factors])
        quant.pre, quant.shift, quant.high = map(self._ints, (own.pre, own.shift, own.high))

    def _pointers(self, addresses: Sequence[int]) -> Any:
        array = (ctypes.c_void_p * len(addresses))(*addresses)
        self._alive.append(array)
        return array
