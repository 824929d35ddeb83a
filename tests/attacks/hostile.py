"""A small honest artifact, and what a broken disk or an attacker makes of it, with what the error must say.

Where it matters the hashes are computed anew, as an attacker would, so that they protect nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from rheostat.program import (
    Concat,
    Conv2d,
    GlobalAvgPool,
    Group,
    Input,
    Linear,
    Norm,
    Program,
    Segment,
    Value,
    plan,
)
from rheostat.spec import SubnetInfo

Json = dict[str, Any]
BYTES = {"F32": 4, "I64": 8, "BOOL": 1}


def toy() -> tuple[Program, dict[str, np.ndarray]]:
    """Two subnets of: convolution with norm, a second one with residual, concatenation of both, pool, linear."""
    random = np.random.default_rng(0)

    def tensor(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    tensors = {
        "a.weight": tensor(4, 3, 3, 3),
        "b.weight": tensor(4, 4, 3, 3),
        "b.bias": tensor(4),
        "fc.weight": tensor(5, 8),
        "fc.bias": tensor(5),
        "n.num_batches_tracked": np.array(7),
        "n.num_batches_tracked@0": np.array(7),
    }
    for part in ("weight", "bias", "running_mean", "running_var"):
        tensors |= {f"n.{part}": np.abs(tensor(4)), f"n.{part}@0": np.abs(tensor(2))}
    norm = Norm(*((f"n.{p}@0", f"n.{p}") for p in ("weight", "bias", "running_mean", "running_var")), 1e-5)
    one, half = (1, 1), (Segment(4, (2, 4)),)
    values = (
        Value((Segment(3, (3, 3)),), (6, 6)),
        Value(half, (6, 6)),
        Value(half, (6, 6)),
        Value(half * 2, (6, 6)),
        Value(half * 2, ()),
        Value((Segment(5, (5, 5)),), ()),
    )
    ops = (
        Conv2d(0, 1, "a.weight", None, one, one, one, one, norm, "relu"),
        Conv2d(1, 2, "b.weight", "b.bias", one, one, one, one, None, "relu", 1),
        Concat((1, 2), 3),
        GlobalAvgPool(3, 4),
        Linear(4, 5, "fc.weight", "fc.bias"),
    )
    program = Program(
        model="Toy",
        input=Input("x", (3, 6, 6)),
        subnets=(SubnetInfo("0.5", 121, 3260, 500, 0.5), SubnetInfo("1.0", 309, 9112, 1268, 0.75, 0.1, 0.2)),
        groups=(Group("a", 4, (2, 4)), Group("fc", 5, (5, 5), "model output")),
        values=values,
        ops=ops,
        outputs=(5,),
        plan=plan(values, ops, (5,)),
        producer="rheostat 0.1.0",
        provenance={"seed": 0, "command": "make demo", "loss": 0.25},
    )
    return program, tensors


def take_apart(data: bytes) -> tuple[Json, Json, bytes]:
    """Header without the program, the program, and the bytes of the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"].pop("program")), data[8 + length :]


def put_together(header: Json, program: Json, tensors: bytes) -> bytes:
    """A file with true hashes, whatever its content."""
    header = copy.deepcopy(header)
    table = {k: v for k, v in header.items() if k != "__metadata__"}
    try:
        digest = hashlib.sha256()
        for name, item in sorted(table.items()):
            line = [name, item["dtype"], item["shape"]]
            digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            digest.update(tensors[slice(*item["data_offsets"])])
        program = program | {"sha256": digest.hexdigest()}
    except (KeyError, TypeError, AttributeError):
        pass
    text = json.dumps(program, sort_keys=True, separators=(",", ":"))
    header["__metadata__"] |= {"program": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return raw(json.dumps(header).encode(), tensors)


def raw(header: bytes, tensors: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + tensors


def program_edit(edit: Callable[[Json], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        edit(program)
        return put_together(header, program, tensors)

    return apply


def header_edit(edit: Callable[[Json], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        edit(header)
        return put_together(header, program, tensors)

    return apply


def number_edit(name: str, value: float, index: int = 0) -> Callable[[bytes], bytes]:
    """One float of one tensor, with a true hash."""

    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        start = header[name]["data_offsets"][0] + 4 * index
        return put_together(
            header, program, tensors[:start] + struct.pack("<f", value) + tensors[start + 4 :]
        )

    return apply


def renamed(old: str, new: str) -> Callable[[bytes], bytes]:
    return header_edit(lambda h: h.update({new: h.pop(old)}))


def with_key_twice(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    item = json.dumps(json.loads(header)["a.weight"])
    return raw(header[:-1] + f',"a.weight":{item}}}'.encode(), data[8 + length :])


def with_program_text(text: str) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, _, tensors = take_apart(data)
        header["__metadata__"] |= {"program": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        return raw(json.dumps(header).encode(), tensors)

    return apply


def with_program_key_twice(data: bytes) -> bytes:
    _, program, _ = take_apart(data)
    text = json.dumps(program)
    return with_program_text(text[:-1] + ', "version": 1}')(data)


def many_tensors(count: int) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        items = ",".join(f'"{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.dumps(json.loads(data[8 : 8 + length])["__metadata__"])
        return raw(f'{{"__metadata__":{metadata},{items}}}'.encode())

    return apply


def many_ops(count: int) -> Callable[[Json], None]:
    """A long chain of activations with true shapes: the largest program that the limits let through, and more."""

    def edit(program: Json) -> None:
        first = copy.deepcopy(program["values"][0])
        program["values"] = [first] * (count + 1)
        program["ops"] = [
            {"op": "activation", "input": i, "output": i + 1, "activation": "relu"} for i in range(count)
        ]
        program["outputs"] = [count]
        program["plan"] = {"size": 224, "offsets": [112 * (i % 2) for i in range(count + 1)]}

    return edit


def many_segments(count: int) -> Callable[[Json], None]:
    def edit(program: Json) -> None:
        many_ops(1)(program)
        program["values"][1] = {"channels": [[1, [1, 1]]] * count, "space": [6, 6]}

    return edit


def wide_concats(program: Json) -> None:
    """Concatenations of concatenations: inputs times segments grows with the square of the file."""
    wide = {"channels": [[2, [1, 2]]] * 400, "space": [6, 6]}
    program["values"] = [program["values"][0], *[wide] * 60]
    program["ops"] = [{"op": "concat", "inputs": [i] * 400, "output": i + 1} for i in range(60)]
    program["outputs"] = [60]
    program["plan"] = {"size": 28800 * 60, "offsets": [28800 * i for i in range(61)]}


def op(index: int, **changes: Any) -> Callable[[bytes], bytes]:
    return program_edit(lambda p: p["ops"][index].update(changes))


def vast_border(data: bytes) -> bytes:
    """The first convolution pads by 6000 and skips nearly all of it: its output is 1x1, as all that follow are."""
    header, program, tensors = take_apart(data)
    program["ops"][0].update(padding=[6000, 6000], stride=[65535, 65535])
    for value in program["values"][1:4]:
        value["space"] = [1, 1]
    return put_together(header, program, tensors)


def one_tensor(shape: list[int], count: int, op: Json) -> Callable[[bytes], bytes]:
    """A chain of `count` ops on vectors, each like `op`, which all read the one tensor `t`, full of zeros."""

    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        size = 4 * math.prod(shape)
        header["t"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(tensors), len(tensors) + size]}
        many_ops(count)(program)
        vector = {"channels": [[shape[0], [shape[0]] * 2]], "space": []}
        program["values"] = [vector] * (count + 1)
        program["ops"] = [op | {"input": i, "output": i + 1} for i in range(count)]
        program["input"]["shape"] = shape[:1]
        offsets = [shape[0] * (i % 2) for i in range(count + 1)]
        program["plan"] = {"size": 2 * shape[0], "offsets": offsets}
        return put_together(header, program, tensors + bytes(size))

    return apply


def tensor(name: str, **changes: Any) -> Callable[[bytes], bytes]:
    return header_edit(lambda h: h[name].update(changes))


def overlap(header: Json) -> None:
    """b.bias twice over the same bytes, the length made up for elsewhere."""
    header["b.bias"]["data_offsets"] = header["fc.bias"]["data_offsets"][:1] * 2
    header["b.bias"]["data_offsets"][1] += 16


def vast(program: Json) -> None:
    program["input"]["shape"] = [3, 65536, 65536]
    program["values"][0]["space"] = [65536, 65536]


# name -> (how the good file is changed, a text that the error must contain)
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    # The file
    "empty": (lambda d: b"", "at least the 8 bytes"),
    "seven bytes": (lambda d: d[:7], "at least the 8 bytes"),
    "length alone": (lambda d: d[:8], "header length"),
    "header cut": (lambda d: d[:100], "header length"),
    "tensors cut": (lambda d: d[:-1], "the end of the file"),
    "one byte more": (lambda d: d + b"\0", "the end of the file"),
    "absurd header length": (lambda d: b"\xff" * 8 + d[8:], "header length"),
    "header length of the file": (lambda d: struct.pack("<Q", len(d)) + d[8:], "header length"),
    "header length one too many": (lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] + 1) + d[8:], "header"),
    "header length zero": (lambda d: bytes(8) + d[8:], "begin with"),
    "header over the cap": (lambda d: raw(b"{" + b" " * (16 * 2**20)), "header length"),
    "a zip, as torch.save writes": (lambda d: b"PK\x03\x04" + d[4:], "header length"),
    "bit flip in a weight": (lambda d: d[:-3] + bytes([d[-3] ^ 1]) + d[-2:], "SHA-256"),
    # The header's JSON
    "not JSON": (lambda d: raw(b"{oops}"), "not JSON"),
    "not UTF-8": (lambda d: raw(b'{"\xff":1}'), "not UTF-8"),
    "UTF-16": (lambda d: raw('{"a":1}'.encode("utf-16-le")), "not JSON"),
    "a byte order mark": (lambda d: raw(b"\xef\xbb\xbf{}"), "begin with"),
    "a list": (lambda d: raw(b"[]"), "begin with"),
    "two objects": (lambda d: raw(b"{}{}"), "not JSON"),
    "no metadata": (header_edit(lambda h: h["__metadata__"].pop("format")), "__metadata__"),
    "another format": (header_edit(lambda h: h["__metadata__"].update(format="pt")), "__metadata__"),
    "more metadata": (header_edit(lambda h: h["__metadata__"].update(note="x")), "nothing else"),
    "metadata that is no text": (header_edit(lambda h: h.update(__metadata__={"format": 1})), "__metadata__"),
    "the same tensor twice": (with_key_twice, "twice"),
    "deeply nested": (lambda d: raw(b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}"), "nested too deeply"),
    "deeply nested objects": (lambda d: raw(b'{"a":' * 400_000 + b"1" + b"}" * 400_000), "nested too deeply"),
    "a number of a million digits": (lambda d: raw(b'{"a":' + b"9" * 1_000_000 + b"}"), "not JSON"),
    "NaN in the header": (lambda d: raw(b'{"__metadata__":NaN}'), "finite"),
    "half a million empty tensors": (many_tensors(500_000), "header length"),
    "a quarter million empty tensors": (many_tensors(250_000), "JSON values"),
    "as many empty tensors as parse": (many_tensors(70_000), "tensors; want at most"),
    "a million short lists": (lambda d: raw(b'{"a":[' + b"[]," * 1_000_000 + b"1]}"), "JSON values"),
    # The tensors' table
    "a path as a name": (renamed("n.num_batches_tracked", "../../etc/passwd"), "printable name"),
    "an absolute path": (renamed("n.num_batches_tracked", "/etc/passwd"), "printable name"),
    "a Windows path": (renamed("n.num_batches_tracked", "C:\\x"), "printable name"),
    "dots alone": (renamed("n.num_batches_tracked", ".."), "printable name"),
    "a control character in a name": (renamed("n.num_batches_tracked", "n\x1b[2J"), "printable name"),
    "a line break in a name": (renamed("n.num_batches_tracked", "a\nb"), "printable name"),
    "a reversed name": (renamed("n.num_batches_tracked", "a\u202eb"), "printable name"),
    "half a surrogate": (renamed("n.num_batches_tracked", "a\ud800"), "printable name"),
    "an empty name": (renamed("n.num_batches_tracked", ""), "printable name"),
    "a long name": (renamed("n.num_batches_tracked", "a" * 257), "printable name"),
    "a negative shape": (tensor("a.weight", shape=[-4, -3, 3, 3]), "shape"),
    "an empty tensor of vast sizes": (tensor("n.num_batches_tracked", shape=[0] + [2**34] * 7), "limit"),
    "an overflowing shape": (tensor("a.weight", shape=[2**32, 2**32, 2, 2]), "limit"),
    "a shape that wraps to the right size": (tensor("a.weight", shape=[2**62 + 1, 4, 3, 9]), "limit"),
    "a shape of floats": (tensor("a.weight", shape=[4.0, 3, 3, 3]), "shape"),
    "a shape of booleans": (tensor("a.weight", shape=[True, 3, 3, 12]), "shape"),
    "a shape of a thousand ones": (tensor("a.weight", shape=[1] * 1000), "shape"),
    "a shape that is too large": (tensor("a.weight", shape=[5, 3, 3, 3]), "data_offsets"),
    "an unknown dtype": (tensor("a.weight", dtype="F8_E4M3"), "dtype"),
    "a dtype that is an object": (tensor("a.weight", dtype={"a": 1}), "dtype"),
    "negative offsets": (tensor("a.weight", data_offsets=[-432, 0]), "data_offsets"),
    "reversed offsets": (tensor("a.weight", data_offsets=[432, 0]), "data_offsets"),
    "offsets beyond 64 bits": (tensor("a.weight", data_offsets=[2**70, 2**70 + 432]), "limit"),
    "overlapping offsets": (header_edit(overlap), "without gap or overlap"),
    "a hole": (header_edit(lambda h: h.pop("b.bias")), "without gap or overlap"),
    "no offsets": (header_edit(lambda h: h["b.bias"].pop("data_offsets")), "keys"),
    "a tensor that is a number": (header_edit(lambda h: h.update({"z": 1})), "keys"),
    # Numbers
    "NaN in a scale": (number_edit("n.weight", float("nan")), "n.weight: holds NaN"),
    "infinity in a weight": (number_edit("b.weight", float("inf"), 77), "b.weight: holds NaN or infinity"),
    "a negative variance": (number_edit("n.running_var@0", -1e-3), "negative variance"),
    # The program's JSON
    "a program that is no JSON": (with_program_text("import os"), "program: not JSON"),
    "a program that is a number": (with_program_text("1"), "program.version"),
    "a key twice in the program": (with_program_key_twice, "twice"),
    "a deeply nested program": (with_program_text("[" * 300_000 + "]" * 300_000), "nested too deeply"),
    "NaN in the program": (with_program_text('{"version": NaN}'), "finite"),
    "a future version": (program_edit(lambda p: p.update(version=4)), "program.version"),
    "a version of levels without any": (program_edit(lambda p: p.update(version=3)), "'levels' is missing"),
    "a version of integers without any": (program_edit(lambda p: p.update(version=2)), "'quant' is missing"),
    "integers in a version of floats": (program_edit(lambda p: p.update(quant=None)), "unknown key 'quant'"),
    "a version that is true": (program_edit(lambda p: p.update(version=True)), "program.version"),
    "a missing key": (program_edit(lambda p: p.pop("plan")), "missing"),
    "an unknown key": (program_edit(lambda p: p.update(exec="rm")), "unknown key"),
    "a model name with an escape": (program_edit(lambda p: p.update(model="\x1b]0;x\x07")), "program.model"),
    "no subnets": (program_edit(lambda p: p.update(subnets=[])), "program.subnets"),
    "a subnet twice": (program_edit(lambda p: p["subnets"][0].update(name="1.0")), "each once"),
    "an accuracy of 90": (program_edit(lambda p: p["subnets"][0].update(accuracy=90)), "accuracy"),
    "an infinite latency": (with_program_text('{"version":1e999}'), "program.version"),
    "a parameter count beyond 64 bits": (program_edit(lambda p: p["subnets"][0].update(macs=2**63)), "integer"),
    "non-nested widths": (program_edit(lambda p: p["groups"][0].update(widths=[4, 2])), "never decrease"),
    "a width of zero": (program_edit(lambda p: p["groups"][0].update(widths=[0, 4])), "groups[0].widths"),
    "a width beyond its group": (program_edit(lambda p: p["groups"][0].update(widths=[2, 5])), "groups[0].widths"),
    "a width missing": (program_edit(lambda p: p["groups"][0].update(widths=[4])), "one width for each"),
    "an alias of nothing": (program_edit(lambda p: p["aliases"].update(x="nothing")), "aliases"),
    "an alias of a stored name": (program_edit(lambda p: p["aliases"].update({"a.weight": "b.bias"})), "aliases"),
    "no ops and no reason": (program_edit(lambda p: p.update(ops=None)), "unsupported"),
    "no ops but values": (program_edit(lambda p: p.update(ops=None, unsupported="x")), "no values"),
    # What the program means
    "levels that nothing declares": (renamed("n.num_batches_tracked", "a.weight@levels"), "says nothing of it"),
    "an unknown op": (op(3, op="system"), "ops[3].op"),
    "an op that is a list": (program_edit(lambda p: p["ops"].__setitem__(0, [])), "ops[0]"),
    "an unknown activation": (op(0, activation="eval"), "activation"),
    "a field too many": (op(3, shell="x"), "unknown key"),
    "a stride of zero": (op(0, stride=[0, 1]), "stride"),
    "a huge padding": (op(0, padding=[2**31, 1]), "padding"),
    "a padding that the plan does not count": (vast_border, "at most 1048576 numbers with the padding"),
    "a weight that a hundred ops pack": (
        one_tensor(
            [1024, 1024],
            100,
            {"op": "linear", "weight": "t", "bias": None, "norm": None, "activation": None, "add": None},
        ),
        "at most 67108864 numbers for what is stored",
    ),
    "a norm that thousands of ops copy": (
        one_tensor(
            [4096],
            8000,
            {
                "op": "norm",
                "norm": {"weight": None, "bias": None, "mean": ["t", "t"], "var": ["t", "t"], "eps": 1e-5},
                "activation": None,
            },
        ),
        "at most 67108864 numbers for what is stored",
    ),
    "a padding that makes a vast output": (op(0, padding=[65535, 65535]), "declared"),
    "a dilation that does not fit": (op(0, dilation=[9, 9]), "does not fit"),
    "eps of zero": (program_edit(lambda p: p["ops"][0]["norm"].update(eps=0)), "eps"),
    "a norm of another width": (
        program_edit(lambda p: p["ops"][0]["norm"].update(weight=["n.weight", "n.weight"])),
        "want F32 [2]",
    ),
    "a norm for one subnet": (program_edit(lambda p: p["ops"][0]["norm"].update(mean=["n.running_mean"])), "one name"),
    "a weight that is missing": (op(1, weight="c.weight"), "stored tensor"),
    "a weight of another shape": (op(1, weight="a.weight"), "want [O, I/g, kh, kw]"),
    "a weight of integers": (op(4, bias="n.num_batches_tracked"), "want F32"),
    "a path for a weight": (op(1, weight="/dev/zero"), "printable name"),
    "a value from the future": (op(0, input=2), "no op before it makes"),
    "a value beyond the table": (op(0, input=2**31 - 1), "no op before it makes"),
    "a negative value": (op(0, input=-1), "input"),
    "a residual of itself": (op(1, add=2), "no op before it makes"),
    "a residual of another shape": (op(1, add=0), "cannot add"),
    "a value made twice": (op(1, output=1), "a new value"),
    "a value beyond the values": (op(4, output=77), "a new value"),
    "groups that do not divide": (op(1, groups=[3, 3]), "groups"),
    "a value of a vast size": (program_edit(vast), "elements"),
    "more kept than full": (
        program_edit(lambda p: p["values"][1]["channels"][0].__setitem__(1, [2, 5])), "values[1].channels[0]"
    ),
    "kept channels that shrink": (
        program_edit(lambda p: p["values"][1]["channels"][0].__setitem__(1, [4, 2])), "never decrease"
    ),
    "kept channels of a third subnet": (
        program_edit(lambda p: p["values"][1]["channels"][0].__setitem__(1, [2, 4, 4])), "for each of the 2 subnets"
    ),
    "a declared shape that is wrong": (program_edit(lambda p: p["values"][3].update(space=[6, 7])), "declared"),
    "one segment for two": (program_edit(lambda p: p["values"][3].update(channels=[[8, [4, 8]]])), "declared"),
    "a space of one dimension": (program_edit(lambda p: p["values"][3].update(space=[6])), "space"),
    "an input that is not the first value": (program_edit(lambda p: p["input"].update(shape=[3, 6, 7])), "whole input"),
    "no outputs": (program_edit(lambda p: p.update(outputs=[])), "outputs"),
    "an output beyond the values": (program_edit(lambda p: p.update(outputs=[6])), "outputs"),
    "a plan that is too short": (program_edit(lambda p: p["plan"]["offsets"].pop()), "one offset for each"),
    "a plan outside its arena": (program_edit(lambda p: p["plan"].update(size=100)), "outside the arena"),
    "a plan that overlaps": (program_edit(lambda p: p["plan"].update(offsets=[0] * 6)), "overlap"),
    "a plan of eight gigabytes": (program_edit(lambda p: p["plan"].update(size=2**31 - 1)), "together need"),
    "an offset beyond 32 bits": (program_edit(lambda p: p["plan"]["offsets"].__setitem__(0, 2**31)), "offsets[0]"),
    "too many ops": (program_edit(many_ops(9000)), "program.values"),
    "too many segments": (program_edit(many_segments(9000)), "channels"),
    "many segments": (program_edit(many_segments(8192)), "declared"),
    "wide concatenations": (program_edit(wide_concats), "segments of channels"),
}  # fmt: skip
