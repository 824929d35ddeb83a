"""Image data sets as plain arrays, numpy only: from packed files or through Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Images:
    """Images [N, C, H, W] uint8, labels [N] int64; mean and deviation of each channel of `pixels / 255`."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """Return the float32 input of the network: `(images / 255 - mean) / std`."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        return (images.astype(np.float32) / np.float32(255) - mean) / std


def load(name: str, data_dir: str | Path | None = None, shape: tuple[int, ...] = ()) -> Images:
    """Load the data set `name`: "digits" (scikit-learn, no download), "mnist" or "cifar10".

    data_dir: holds packed files (`mnist.npz.xz`; `cifar10/*.xz`, `cifar10/labels.npz`); without it the data come
        from Hugging Face `datasets`.
    shape: (C, H, W) that digits are enlarged to, to stand in for a larger data set.
    Raises ValueError when the name is unknown or neither source is there.

    >>> load("digits").train_images.shape
    (899, 1, 8, 8)
    """
    if name == "digits":
        return _digits(shape or (1, 8, 8))
    if name == "mnist":
        arrays = _packed_mnist(Path(data_dir)) if data_dir else _hugging_face("ylecun/mnist", "image")
        return Images("mnist", *arrays, mean=(0.1307,), std=(0.3081,))
    if name == "cifar10":
        arrays = _packed_cifar10(Path(data_dir)) if data_dir else _hugging_face("uoft-cs/cifar10", "img")
        # ImageNet's statistics, because the published CIFAR-10 ResNets were trained with them.
        return Images("cifar10", *arrays, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    raise ValueError(f"data: got {name!r}; want digits, mnist or cifar10")


def _digits(shape: tuple[int, ...]) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError('digits: scikit-learn is not installed; run pip install "rheostat[demo]"') from None
    pixels, labels = load_digits(return_X_y=True)
    # Sixteen grey levels, spread over a byte.
    images = np.rint(np.reshape(pixels, (-1, 1, 8, 8)) * (255 / 16)).astype(np.uint8)
    rows, columns = (np.arange(size) * 8 // size for size in shape[1:])
    images = np.repeat(images[:, :, rows][..., columns], shape[0], axis=1)
    labels = np.asarray(labels, np.int64)
    # The writers come one after the other; every second image is a test image, so that both parts see all writers.
    test = np.arange(len(labels)) % 2 == 1
    return Images(
        "digits",
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        mean=(0.306,) * shape[0],
        std=(0.376,) * shape[0],
    )


def _packed_mnist(data_dir: Path) -> Arrays:
    path = _existing(data_dir / "mnist.npz.xz")
    with lzma.open(path) as file, np.load(io.BytesIO(file.read())) as arrays:
        x_train, y_train, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    return x_train[:, None], y_train.astype(np.int64), x_test[:, None], y_test.astype(np.int64)


def _packed_cifar10(data_dir: Path) -> Arrays:
    folder = data_dir / "cifar10"
    with np.load(_existing(folder / "labels.npz")) as labels:
        y_train, y_test = labels["y_train"].astype(np.int64), labels["y_test"].astype(np.int64)
    x_train = np.concatenate([_cifar10_part(folder / f"train_{part}.xz") for part in range(1, 6)])
    return x_train, y_train, _cifar10_part(folder / "test.xz"), y_test


def _cifar10_part(path: Path) -> np.ndarray:
    """One packed file as [N, 3, 32, 32]; decoded once (2 s), afterwards read from the user's cache."""
    packed = _existing(path).read_bytes()
    cached = _cache_dir() / f"cifar10-{hashlib.sha256(packed).hexdigest()[:16]}.npy"
    if cached.exists():
        return np.load(cached, allow_pickle=False)
    images = _decode_cifar10(lzma.decompress(packed))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            np.save(file, images)
        Path(file.name).replace(cached)
    except OSError:  # a cache that cannot be written only costs the time to decode again
        pass
    return images


def _decode_cifar10(packed: bytes) -> np.ndarray:
    """Undo the LOCO-I prediction (Weinberger et al. 2000): planes G, R-G, B-G; zigzag residuals modulo 256."""
    coded = np.frombuffer(packed, np.uint8).reshape(3, -1, 32, 32).astype(np.int16)
    residual = ((coded >> 1) ^ -(coded & 1)).transpose(2, 3, 0, 1)  # row, column, plane, image
    residual = np.ascontiguousarray(residual)
    planes = np.zeros((33, 33, *residual.shape[2:]), np.int16)  # one row and column of zeros in front
    for row in range(32):
        for column in range(32):
            left, above, corner = planes[row + 1, column], planes[row, column + 1], planes[row, column]
            if row == 0:
                guess = left
            elif column == 0:
                guess = above
            else:
                low, high = np.minimum(left, above), np.maximum(left, above)
                guess = np.clip(left + above - corner, low, high)
            pixel = guess + residual[row, column]
            pixel[0] &= 255
            pixel[1:] = ((pixel[1:] + pixel[0]) & 255) - pixel[0]
            planes[row + 1, column + 1] = pixel
    green, red, blue = planes[1:, 1:, 0], planes[1:, 1:, 1], planes[1:, 1:, 2]
    rgb = np.stack([red + green, green, blue + green])  # channel, row, column, image
    return np.ascontiguousarray(rgb.transpose(3, 0, 1, 2)).astype(np.uint8)


def _hugging_face(repository: str, image_key: str) -> Arrays:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{repository}: no --data DIR given and Hugging Face datasets is not installed; "
            'run pip install "rheostat[data]"'
        ) from None
    try:
        parts = datasets.load_dataset(repository)
    except Exception as error:  # the hub raises many kinds: no network, no such file, a broken cache
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{repository}: not downloaded ({reason}); give --data DIR or connect") from None
    arrays = []
    for part in (parts["train"], parts["test"]):
        images = np.stack([np.asarray(image) for image in part[image_key]])
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays += [np.ascontiguousarray(images), np.asarray(part["label"], np.int64)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; want --data DIR with the packed data set")
    return path


def _cache_dir() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rheostat"
