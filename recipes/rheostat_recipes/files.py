"""Photographs: decoded with Pillow, from memory or, where a data set is larger than that, when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class ImageFiles:
    """Image files as if they were an array uint8 [N, 3, size, size]; an index array or a slice decodes what it names.

    short: an image is scaled until its short side has this many pixels; then its middle is cut out.
    """

    paths: tuple[Path, ...]
    size: int
    short: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array."""
        return len(self), 3, self.size, self.size

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(len(self))[key]
        out = np.empty((len(chosen), 3, self.size, self.size), np.uint8)
        for image, index in zip(out, chosen, strict=True):
            image[:] = middle(decode(self.paths[index]), self.size, self.short).transpose(2, 0, 1)
        return out

    def window(self, index: int, random: Sequence[float]) -> np.ndarray:
        """Decode one image as training wants it: a random window, uint8 [3, size, size]; see `window`."""
        return window(decode(self.paths[index]), self.size, random).transpose(2, 0, 1)


def image_folders(
    folder: Path, size: int, short: int
) -> tuple[ImageFiles, np.ndarray, ImageFiles, np.ndarray]:
    """Find the images of `folder/train/<class>/` and `folder/val/<class>/`, and the labels int64 [N] of each.

    Classes are numbered in the order of their names; folders without images do not count. Raises ValueError when there
    are none, or other ones in `val` than in `train`.
    """
    found: list[dict[str, list[Path]]] = []
    for part in ("train", "val"):
        classes = sorted(path for path in (folder / part).glob("*") if path.is_dir())
        images = {c.name: sorted(p for p in c.iterdir() if p.suffix.lower() in SUFFIXES) for c in classes}
        found.append({name: paths for name, paths in images.items() if paths})
        if not found[-1]:
            raise ValueError(f"{folder / part}: no folder of images; want one a class, {part}/<class>/*.JPEG")
    train, test = found
    if differing := sorted(train.keys() ^ test.keys()):
        raise ValueError(
            f"{folder}: class {differing[0]!r} is in one of train and val only; want the same in both"
        )
    files = [ImageFiles(tuple(p for paths in part.values() for p in paths), size, short) for part in found]
    labels = [np.repeat(np.arange(len(part)), [len(paths) for paths in part.values()]) for part in found]
    return files[0], labels[0], files[1], labels[1]


def decode(file: str | Path | IO[bytes], mode: str = "RGB") -> Image.Image:
    """Read an image, as "RGB" or, for grey values, "L"; ValueError when it is none or Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError('images: Pillow is not installed; run pip install "rheostat[data]"') from None
    try:
        with Image.open(file) as image:
            return image.convert(mode)
    except OSError as error:
        where = file if isinstance(file, str | Path) else "packed image"
        raise ValueError(f"{where}: not an image that Pillow can read ({error})") from None


def middle(image: Image.Image, size: int, short: int) -> np.ndarray:
    """Cut out the middle, uint8 [size, size, channels], after scaling the short side to `short` pixels."""
    scale = short / min(image.size)
    left, top = ((side - size / scale) / 2 for side in image.size)
    return _resized(image, size, (left, top, left + size / scale, top + size / scale))


def window(image: Image.Image, size: int, random: Sequence[float]) -> np.ndarray:
    """Cut out a random window and scale it to uint8 [size, size, channels] (Szegedy et al. 2015, section 6).

    random: five numbers from 0 to 1: the window's share of the area (8 to 100 %), its shape (3:4 to 4:3), its place
        from left to right and from top to bottom, and, from one half up, mirrored.
    """
    area = (0.08 + 0.92 * random[0]) * image.width * image.height
    shape = (4 / 3) ** (2 * random[1] - 1)
    width, height = min(math.sqrt(area * shape), image.width), min(math.sqrt(area / shape), image.height)
    left, top = random[2] * (image.width - width), random[3] * (image.height - height)
    # rounding must not push the window over the edge
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    cut = _resized(image, size, box)
    return cut[:, ::-1] if random[4] >= 0.5 else cut


def _resized(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
