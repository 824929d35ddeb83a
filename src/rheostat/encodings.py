"""How the levels of a pruned tensor become bytes: four encodings, and the one with the fewest bytes (docs/format.md).

Levels are uint8 in the tensor's shape: subnet k of L keeps the weights of level <= k, and L stands for "no subnet".
Bits go most significant first, and the last byte is filled up with zeros. What `decode` returns is what was encoded, or
it raises `ArtifactError`: there is one way to write any levels in an encoding.
"""

from __future__ import annotations

import numpy as np

from rheostat.program import LevelCode
from rheostat.spec import ArtifactError

_CHUNK = 2**20  # a multiple of 8: numbers turned into bits at a time
_MAX_PATTERNS = 2**16
_ID_BITS = (0, 1, 2, 4, 8, 16)
_SMALL_GROUPS = (2, 4, 8, 16, 32)  # the m of N:M sparsity


def codes(levels: np.ndarray, num_subnets: int) -> tuple[LevelCode, ...]:
    """Every encoding that these levels have, the one of the fewest bytes first.

    >>> columns = np.tile(np.array([0, 0, 1, 2, 2], np.uint8), (64, 1))
    >>> codes(columns, 2)[0]
    LevelCode(shape=(64, 5), encoding='pattern', group=5, counts=(128, 64), index_bytes=4)
    """
    flat, bits = levels.ravel(), num_subnets.bit_length()
    counts = _counts(flat)
    assert not any(counts[num_subnets + 1 :]), "a level above the number of subnets"
    stored = tuple(counts[:num_subnets])
    sizes = {
        ("nested", 1): _num_bytes(_nested_bits(flat.size, stored)),
        ("bitmap", 1): _num_bytes(flat.size * bits),
        ("delta", 1): sum(len(gaps) + int(escapes.sum()) for gaps, escapes in _gaps(flat, num_subnets)),
    }
    for group in {*(int(np.prod(levels.shape[d:])) for d in (1, 2, 3)), *_SMALL_GROUPS} - {1}:
        if flat.size % group == 0 and (table := _patterns(flat, group, bits)[0]) is not None:
            sizes["pattern", group] = _pattern_bytes(len(table), flat.size, group, bits)
    made = [LevelCode(levels.shape, name, group, stored, size) for (name, group), size in sizes.items()]
    return tuple(sorted(made, key=lambda code: (code.index_bytes, code.encoding, code.group)))


def encode(code: LevelCode, levels: np.ndarray) -> np.ndarray:
    """The bytes of `levels` in one of their `codes`, uint8 [index_bytes].

    >>> levels = np.array([0, 1, 2, 1], np.uint8)
    >>> encode(LevelCode((4,), "bitmap", 1, (1, 2), 1), levels)  # 00 01 10 01
    array([25], dtype=uint8)
    """
    flat, num_subnets = levels.ravel(), len(code.counts)
    if code.encoding == "bitmap":
        data = _pack(flat, num_subnets.bit_length())
    elif code.encoding == "nested":
        planes = [flat[flat <= k + 1] <= k for k in reversed(range(num_subnets))]
        data = np.packbits(np.concatenate(planes))
    elif code.encoding == "delta":
        data = np.concatenate([_delta(gaps, escapes) for gaps, escapes in _gaps(flat, num_subnets)])
    else:
        table, ids = _patterns(flat, code.group, num_subnets.bit_length())
        assert table is not None
        count = np.array([len(table) - 1], np.uint16)
        data = np.concatenate([_pack(count, 16), table.ravel(), _pack(ids, _id_bits(len(table)))])
    assert data.size == code.index_bytes, (data.size, code)
    return data


def decode(code: LevelCode, data: np.ndarray) -> np.ndarray:
    """The levels that `encode` wrote, uint8 of `code.shape`, whatever `data` is: of its bytes nothing is believed."""
    num_subnets, size = len(code.counts), int(np.prod(code.shape, dtype=np.int64))
    if data.size != code.index_bytes:
        raise ArtifactError(f"{data.size} bytes of levels; want {code.index_bytes}")
    read = {"bitmap": _read_bitmap, "nested": _read_nested, "delta": _read_delta, "pattern": _read_pattern}
    levels = read[code.encoding](code, data, size)
    got = _counts(levels)
    if any(got[num_subnets + 1 :]):
        raise ArtifactError(
            f"a level is {levels.max()}; want at most {num_subnets}, for weights no subnet keeps"
        )
    if tuple(got[:num_subnets]) != code.counts:
        raise ArtifactError(f"the levels' counts are {got[:num_subnets]}; want {list(code.counts)}")
    return levels.reshape(code.shape)


def _counts(flat: np.ndarray) -> list[int]:
    """How many weights have each level from 0 to 255; in pieces, because `bincount` copies to int64."""
    pieces = range(0, flat.size, _CHUNK)
    return sum(
        (np.bincount(flat[i : i + _CHUNK], minlength=256) for i in pieces), np.zeros(256, int)
    ).tolist()


def _num_bytes(bits: int) -> int:
    return -(-bits // 8)


# ---- bits ----


def _pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """`bits` bits of each number, one after the other."""
    places = np.arange(bits, dtype=np.uint8)[::-1]
    pieces = [np.zeros(0, np.uint8)]
    for i in range(0, numbers.size if bits else 0, _CHUNK):
        piece = numbers[i : i + _CHUNK, None] >> places & 1
        pieces.append(np.packbits(piece.astype(np.uint8)))
    return np.concatenate(pieces)


def _unpack(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """`count` numbers of `bits` bits, uint16, from exactly as many bytes as they take."""
    if data.size != _num_bytes(count * bits):
        raise ArtifactError(f"{data.size} bytes for {count} numbers of {bits} bits")
    if count * bits % 8 and data[-1] & (0xFF >> count * bits % 8):
        raise ArtifactError("a bit is set after the last number")
    numbers = np.zeros(count, np.uint16)
    for i in range(0, count if bits else 0, _CHUNK):
        part = numbers[i : i + _CHUNK]
        found = np.unpackbits(data[i * bits // 8 :][: _num_bytes(part.size * bits)], count=part.size * bits)
        for plane in found.reshape(part.size, bits).T:
            part <<= 1
            part |= plane
    return numbers


# ---- bitmap: a number of as many bits as the largest level has ----


def _read_bitmap(code: LevelCode, data: np.ndarray, size: int) -> np.ndarray:
    return _unpack(data, size, len(code.counts).bit_length()).astype(np.uint8)


# ---- nested: a bit for each weight, then one for each that is left, from the largest subnet to the smallest ----


def _nested_bits(size: int, counts: tuple[int, ...]) -> int:
    return size + sum(sum(counts[: k + 1]) for k in range(1, len(counts)))


def _read_nested(code: LevelCode, data: np.ndarray, size: int) -> np.ndarray:
    num_subnets = len(code.counts)
    bits = _unpack(data, _nested_bits(size, code.counts), 1).astype(np.uint8)
    levels = np.full(size, num_subnets, np.uint8)
    start = 0
    for k in reversed(range(num_subnets)):
        left = levels == k + 1
        plane = bits[start : start + (size if k == num_subnets - 1 else code.kept(k + 1))]
        if (kept := int(plane.sum())) != code.kept(k):
            raise ArtifactError(f"{kept} weights up to level {k}; want {code.kept(k)}")
        levels[left] -= plane
        start += plane.size
    return levels


# ---- delta: level after level, the gaps between its weights; 0 is an escape that goes 255 on ----


def _gaps(flat: np.ndarray, num_subnets: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each level the distance of every weight from the one before, less 1, and the escapes that it takes."""
    found = []
    for k in range(num_subnets):
        gaps = np.diff(np.flatnonzero(flat == k), prepend=-1) - 1
        found.append((gaps, gaps // 255))
    return found


def _delta(gaps: np.ndarray, escapes: np.ndarray) -> np.ndarray:
    data = np.zeros(len(gaps) + int(escapes.sum()), np.uint8)
    data[np.cumsum(escapes + 1) - 1] = gaps % 255 + 1
    return data


def _read_delta(code: LevelCode, data: np.ndarray, size: int) -> np.ndarray:
    levels = np.full(size, len(code.counts), np.uint8)
    marks = np.flatnonzero(data)
    if marks.size != sum(code.counts) or (data.size and data[-1] == 0):
        raise ArtifactError(f"{marks.size} gaps; want {sum(code.counts)}, and none open at the end")
    begin = 0
    for k, count in enumerate(code.counts):
        if count == 0:
            continue
        end = int(marks[code.kept(k) - 1]) + 1
        steps = data[begin:end].astype(np.int64)
        places = np.cumsum(np.where(steps == 0, 255, steps))[steps != 0] - 1
        if places[-1] >= size:
            raise ArtifactError(f"a weight of level {k} at {places[-1]}; want at most {size - 1}")
        levels[places] = k
        begin = end
    return levels


# ---- pattern: the number of distinct patterns less 1 (16 bits), these sorted, and one id for each group ----


def _id_bits(num_patterns: int) -> int:
    return next(bits for bits in _ID_BITS if num_patterns <= 2**bits)


def _pattern_bytes(num_patterns: int, size: int, group: int, bits: int) -> int:
    each = _num_bytes(group * bits)
    return 2 + num_patterns * each + _num_bytes(size // group * _id_bits(num_patterns))


def _patterns(flat: np.ndarray, group: int, bits: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The distinct patterns as sorted rows of bytes, None where there are too many; and the row of each group."""
    each, num_groups = _num_bytes(group * bits), flat.size // group
    width = 8 if each <= 8 else each  # eight bytes sort as one number
    rows = np.zeros((num_groups, width), np.uint8)
    places, step = np.arange(bits, dtype=np.uint8)[::-1], max(1, _CHUNK // group)
    for i in range(0, num_groups, step):
        part = flat[i * group : (i + step) * group].reshape(-1, group, 1) >> places & 1
        rows[i : i + step, width - each :] = np.packbits(part.reshape(len(part), -1), axis=1)
    keys = rows.view(">u8" if width == 8 else f"V{width}").ravel()
    table, ids = np.unique(keys.astype(np.uint64) if width == 8 else keys, return_inverse=True)
    if len(table) > _MAX_PATTERNS:
        return None, ids
    first = np.zeros(len(table), np.int64)
    first[ids] = np.arange(num_groups)
    return rows[first, width - each :], ids.astype(np.uint16)


def _read_pattern(code: LevelCode, data: np.ndarray, size: int) -> np.ndarray:
    bits, group = len(code.counts).bit_length(), code.group
    if data.size < 2:
        raise ArtifactError("no number of patterns")
    num_patterns = int(data[0]) * 256 + int(data[1]) + 1
    if data.size != (want := _pattern_bytes(num_patterns, size, group, bits)):
        raise ArtifactError(f"{data.size} bytes for {num_patterns} patterns; want {want}")
    each = _num_bytes(group * bits)
    rows = data[2 : 2 + num_patterns * each].reshape(num_patterns, each)
    different = rows[1:] != rows[:-1]
    at = np.argmax(different, axis=1)[:, None]
    if not (np.take_along_axis(rows[1:], at, 1) > np.take_along_axis(rows[:-1], at, 1)).all():
        raise ArtifactError("the patterns are not sorted, or one is there twice")
    ids = _unpack(data[2 + num_patterns * each :], size // group, _id_bits(num_patterns))
    used = np.bincount(ids, minlength=num_patterns)
    if len(used) > num_patterns:
        raise ArtifactError(f"an id is {len(used) - 1}; want at most {num_patterns - 1}")
    if not used.all():
        raise ArtifactError(f"no group has pattern {int(np.argmin(used))} of {num_patterns}")
    planes = np.unpackbits(rows, axis=1)
    if planes[:, group * bits :].any():
        raise ArtifactError("a bit is set after the last level of a pattern")
    table = np.zeros((num_patterns, group), np.uint8)
    for plane in range(bits):
        table = table << 1 | planes[:, plane : group * bits : bits]
    return table[ids].ravel()
