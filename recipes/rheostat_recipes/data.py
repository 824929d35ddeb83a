"""Data sets as plain arrays: from packed files, the original archives, or through Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from rheostat_recipes.files import ImageFiles, decode, image_folders
from rheostat_recipes.speech import recordings

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

NAMES = ("digits", "mnist", "cifar10", "har", "speech", "speech_wav", "imagenette", "imagenet")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of its training images

HAR_CHANNELS = tuple(
    f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in ("x", "y", "z")
)


@dataclass(frozen=True)
class Images:
    """Images [N, C, H, W] uint8, or signals float32, and labels [N] int64.

    mean, std: of each channel, of `pixels / 255` or of the signals as they are. ImageNet's images are decoded when
    they are asked for: `train_images[indices]` is an array.
    """

    name: str
    train_images: np.ndarray | ImageFiles
    train_labels: np.ndarray
    test_images: np.ndarray | ImageFiles
    test_labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """How many classes the labels name."""
        return int(self.train_labels.max()) + 1

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """Return the float32 input of the network: `(images / 255 - mean) / std`, signals without the 255."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        return (images.astype(np.float32) / scale - mean) / std

    def test_batches(self, size: int = 250) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the test set as the network takes it, `size` images and labels at a time."""
        for start in range(0, len(self.test_labels), size):
            part = slice(start, start + size)
            yield self.normalized(self.test_images[part]), self.test_labels[part]


def load(name: str, data_dir: str | Path | None = None, shape: tuple[int, ...] = ()) -> Images:
    """Load the data set `name`.

    "digits" comes with scikit-learn. "mnist" and "cifar10" come through Hugging Face `datasets` or, as all others, from
    `data_dir`, which holds what was packed for these recipes or what the authors publish:

    - "mnist": `mnist.npz.xz`. "cifar10": `cifar10/*.xz`, `cifar10/labels.npz`.
    - "har", UCI HAR, windows of nine inertial signals [N, 9, 1, 128]: `har.npz.xz` or `UCI HAR Dataset.zip`.
    - "speech", Speech Commands v0.02, spectrograms [N, 1, 98, 40] of twelve classes: `speech_commands_mel.npz`.
    - "speech_wav", the same words from the recordings, see `speech.py`: `speech_commands_v0.02/`, extracted.
    - "imagenette", 112 pixels: `imagenette112_webp.npz`, or `imagenette2/`, `imagenette2-320/`, `imagenette2-160/`.
    - "imagenet", 224 pixels: `imagenet/train/<class>/*` and `imagenet/val/<class>/*`; decoded when asked for.

    shape: (C, H, W) that digits are enlarged to, to stand in for another data set.
    Raises ValueError when the name is unknown, no source is there, or a packed file is damaged.

    >>> load("digits").train_images.shape
    (899, 1, 8, 8)
    """
    if name not in NAMES:
        raise ValueError(f"data: got {name!r}; want one of: {', '.join(NAMES)}")
    if name == "digits":
        return _digits(shape or (1, 8, 8))
    folder = Path(data_dir) if data_dir else None
    if name == "mnist":
        arrays = _packed_mnist(folder) if folder else _hugging_face("ylecun/mnist", "image")
        return Images("mnist", *arrays, mean=(0.1307,), std=(0.3081,))
    if name == "cifar10":
        arrays = _packed_cifar10(folder) if folder else _hugging_face("uoft-cs/cifar10", "img")
        # ImageNet's statistics, because the published CIFAR-10 ResNets were trained with them.
        return Images("cifar10", *arrays, **IMAGENET)
    if folder is None:
        raise ValueError(
            f"{name}: got no --data DIR; want the folder that holds it, see rheostat_recipes.data.load"
        )
    if name == "har":
        archive = folder / "UCI HAR Dataset.zip"
        arrays = _har_archive(archive) if archive.exists() else _packed_har(folder)
        signals = arrays[0].astype(np.float64)
        mean, std = (
            tuple(numbers.round(4).tolist()) for numbers in (signals.mean((0, 2, 3)), signals.std((0, 2, 3)))
        )
        return Images("har", *arrays, mean=mean, std=std)
    if name == "speech":
        return Images("speech", *_packed_speech(folder), mean=(0.3333,), std=(0.1964,))
    if name == "speech_wav":
        arrays = recordings(folder / "speech_commands_v0.02")
        mean, std = (round(float(number) / 255, 4) for number in (arrays[0].mean(), arrays[0].std()))
        return Images("speech_wav", *arrays, mean=(mean,), std=(std,))
    if name == "imagenette":
        return Images("imagenette", *_imagenette(folder), **IMAGENET)
    return Images("imagenet", *image_folders(folder / "imagenet", 224, short=256), **IMAGENET)


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
    with _whole(path), lzma.open(path) as file, np.load(io.BytesIO(file.read())) as arrays:
        x_train, y_train, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    return x_train[:, None], y_train.astype(np.int64), x_test[:, None], y_test.astype(np.int64)


def _packed_cifar10(data_dir: Path) -> Arrays:
    folder = data_dir / "cifar10"
    path = _existing(folder / "labels.npz")
    with _whole(path), np.load(path) as labels:
        y_train, y_test = labels["y_train"].astype(np.int64), labels["y_test"].astype(np.int64)
    x_train = np.concatenate([_cifar10_part(folder / f"train_{part}.xz") for part in range(1, 6)])
    return x_train, y_train, _cifar10_part(folder / "test.xz"), y_test


def _cifar10_part(path: Path) -> np.ndarray:
    """One packed file as [N, 3, 32, 32]; decoding takes 2 s."""
    packed = _existing(path).read_bytes()
    with _whole(path):
        return _decoded_once("cifar10", packed, lambda: _decode_cifar10(lzma.decompress(packed)))


def _decoded_once(name: str, packed: bytes, decoded: Callable[[], np.ndarray]) -> np.ndarray:
    """What is packed in a file, decoded once and afterwards read from the user's cache."""
    cached = _cache_dir() / f"{name}-{hashlib.sha256(packed).hexdigest()[:16]}.npy"
    with suppress(OSError, EOFError, ValueError):  # not there, or damaged
        return np.load(cached, allow_pickle=False)
    images = decoded()
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


def _packed_har(data_dir: Path) -> Arrays:
    """Half windows int16 [9, M, 64], each stored once: a window is one of them and the next."""
    path = _existing(data_dir / "har.npz.xz")
    with _whole(path), lzma.open(path) as file, np.load(io.BytesIO(file.read())) as arrays:
        halves, start, labels = arrays["halves"], arrays["start"].astype(int), arrays["y"].astype(np.int64)
        train, scale = arrays["is_train"], arrays["scale"]
    windows = halves[:, start[:, None] + [0, 1]].reshape(len(HAR_CHANNELS), len(start), 1, 128)
    windows = windows.swapaxes(0, 1).astype(np.float32) * np.float32(scale)
    return windows[train], labels[train], windows[~train], labels[~train]


def _har_archive(path: Path) -> Arrays:
    """The archive as published (Anguita et al. 2013): a text file a channel, a line a window; classes from 1."""
    arrays = []
    with _whole(path), zipfile.ZipFile(path) as archive:
        for part in ("train", "test"):
            signals = (f"{part}/Inertial Signals/{channel}_{part}" for channel in HAR_CHANNELS)
            arrays.append(np.stack([_numbers(archive, name) for name in signals], axis=1)[:, :, None])
            arrays.append(_numbers(archive, f"{part}/y_{part}")[:, 0].astype(np.int64) - 1)
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _numbers(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"UCI HAR Dataset/{name}.txt") as file:
        return np.loadtxt(file, np.float32, ndmin=2)


def _packed_speech(data_dir: Path) -> Arrays:
    """JPEGs that share one header; the official parts, of which the validation one is left out."""
    path = _existing(data_dir / "speech_commands_mel.npz")
    with _whole(path), np.load(path) as arrays:
        labels, part = arrays["label"].astype(np.int64), arrays["split"]
        header, files = arrays["jpeg_header"].tobytes(), _pieces(arrays["jpeg_tails"], arrays["offset"])
    images = _decoded_once(
        "speech",
        path.read_bytes(),
        lambda: np.stack([_pixels(header + file, "L") for file in files])[:, None],
    )
    train, test = part == 0, part == 2
    return images[train], labels[train], images[test], labels[test]


def _imagenette(data_dir: Path) -> Arrays:
    path = data_dir / "imagenette112_webp.npz"
    if path.exists():
        with _whole(path), np.load(path) as arrays:
            labels, train = arrays["label"].astype(np.int64), arrays["is_train"]
            files = _pieces(arrays["webp"], arrays["offset"])
        images = _decoded_once(
            "imagenette",
            path.read_bytes(),
            lambda: np.stack([_pixels(file, "RGB").transpose(2, 0, 1) for file in files]),
        )
        return images[train], labels[train], images[~train], labels[~train]
    folders = [data_dir / f"imagenette2{size}" for size in ("", "-320", "-160")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"{path}: no such file, nor the folder imagenette2; want --data DIR with one of them"
        )
    train_files, y_train, test_files, y_test = image_folders(folder, 112, short=112)
    return train_files[:], y_train, test_files[:], y_test


def _pieces(joined: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
    data = joined.tobytes()
    return (data[start:end] for start, end in pairwise(offsets))


def _pixels(file: bytes, mode: str) -> np.ndarray:
    return np.asarray(decode(io.BytesIO(file), mode))


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


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What a damaged packed file makes its readers raise, as a ValueError that names the file."""
    try:
        yield
    except (EOFError, KeyError, ValueError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        why = error.args[0] if isinstance(error, KeyError) else type(error).__name__
        raise ValueError(
            f"{path}: not what it should hold ({why}); it may have been cut off, so fetch it again"
        ) from error


def _cache_dir() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rheostat"
