"""The readers of data sets: packed files written here by another program, and the real ones where they are."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rheostat_recipes import data as reader
from rheostat_recipes.data import load


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "cache" / "rheostat"


def pack(images: np.ndarray) -> bytes:
    """Pack images uint8 [N, 3, 32, 32] one pixel at a time: planes G, R-G, B-G; MED residuals; zigzag; xz."""
    red, green, blue = images.astype(int).transpose(1, 0, 2, 3)
    out = np.empty((3, len(images), 32, 32), np.uint8)
    for plane, values in enumerate((green, red - green, blue - green)):
        for n, row, column in np.ndindex(values.shape):
            left = values[n, row, column - 1] if column else 0
            above = values[n, row - 1, column] if row else 0
            corner = values[n, row - 1, column - 1] if row and column else 0
            if row and column:
                if corner >= max(left, above):
                    guess = min(left, above)
                elif corner <= min(left, above):
                    guess = max(left, above)
                else:
                    guess = left + above - corner
            else:
                guess = left if column else above
            residual = (int(values[n, row, column] - guess) + 128) % 256 - 128
            out[plane, n, row, column] = 2 * residual if residual >= 0 else -2 * residual - 1
    return lzma.compress(out.tobytes())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A data set of noise, ramps and extremes, packed; and its images."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "cifar10").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    images[0], images[1] = 0, 255
    images[2] = np.arange(32, dtype=np.uint8) * 8
    images[3, :, ::2] = 255
    for part in range(6):
        name = "test" if part == 5 else f"train_{part + 1}"
        (folder / "cifar10" / f"{name}.xz").write_bytes(pack(images[2 * part : 2 * part + 2]))
    labels = np.arange(12, dtype=np.uint8)
    np.savez(folder / "cifar10" / "labels.npz", y_train=labels[:10], y_test=labels[10:])
    file = io.BytesIO()
    digits = images[:, 0, :28, :28]
    np.savez(file, x_train=digits[:8], y_train=labels[:8], x_test=digits[8:], y_test=labels[8:])
    (folder / "mnist.npz.xz").write_bytes(lzma.compress(file.getvalue()))
    return folder, images


def test_cifar10_decodes_what_was_packed(packed: tuple[Path, np.ndarray], cache: Path) -> None:
    folder, images = packed
    for _ in range(2):  # decoded, then from the cache
        got = load("cifar10", folder)
        np.testing.assert_array_equal(got.train_images, images[:10])
        np.testing.assert_array_equal(got.test_images, images[10:])
        assert got.train_labels.tolist() == list(range(10))
        assert got.test_labels.dtype == np.int64
        assert len(list(cache.glob("*.npy"))) == 6
        assert not [path for path in cache.iterdir() if path.suffix != ".npy"]


def test_a_cache_that_cannot_be_written_is_done_without(packed: tuple[Path, np.ndarray], cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    folder, images = packed
    np.testing.assert_array_equal(load("cifar10", folder).test_images, images[10:])


def test_mnist(packed: tuple[Path, np.ndarray]) -> None:
    folder, images = packed
    got = load("mnist", folder)
    np.testing.assert_array_equal(got.train_images[:, 0], images[:8, 0, :28, :28])
    assert got.test_images.shape == (4, 1, 28, 28)
    assert got.test_labels.tolist() == [8, 9, 10, 11]


def test_digits_are_those_of_scikit_learn() -> None:
    images = load("digits")
    together = np.concatenate([images.train_images, images.test_images])
    want = load_digits().images
    assert len(together) == len(want) == 1797
    assert together.sum() == np.rint(want * 255 / 16).astype(np.uint8).sum()
    assert images.normalized(images.train_images).mean() == pytest.approx(0, abs=0.01)
    assert images.normalized(images.train_images).std() == pytest.approx(1, abs=0.01)
    assert set(images.test_labels) == set(range(10))


def test_digits_enlarged() -> None:
    small, large = load("digits"), load("digits", shape=(3, 32, 32))
    np.testing.assert_array_equal(large.train_images[:, 1, ::4, ::4], small.train_images[:, 0])
    assert large.train_images[0, 0, :4, :4].std() == 0
    assert load("digits", shape=(1, 28, 28)).test_images.shape == (898, 1, 28, 28)


def test_normalized_is_what_the_training_loader_gives() -> None:
    import rheostat as rh

    images = load("digits", shape=(3, 8, 8))
    loader = rh.ImageLoader(images.test_images, images.test_labels, 100, mean=images.mean, std=images.std)
    x, y = next(iter(loader))
    np.testing.assert_allclose(images.normalized(images.test_images[:100]), x.numpy(), atol=1e-6)
    np.testing.assert_array_equal(y.numpy(), images.test_labels[:100])


def test_unknown_or_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'imagenet'; want digits, mnist or cifar10"):
        load("imagenet")
    with pytest.raises(ValueError, match=r"mnist\.npz\.xz: no such file; want --data DIR"):
        load("mnist", tmp_path)
    with pytest.raises(ValueError, match=r"labels\.npz: no such file"):
        load("cifar10", tmp_path)


def test_without_datasets_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r'no --data DIR given and .* run pip install "rheostat\[data\]"'):
        load("mnist")


def test_hugging_face_images_become_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the download: colour images come as height, width, channel."""
    import datasets

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    parts = {name: {"img": list(images), "label": [3, 1, 2]} for name in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts)
    got = load("cifar10")
    np.testing.assert_array_equal(got.train_images.transpose(0, 2, 3, 1), images)
    assert got.test_labels.tolist() == [3, 1, 2]


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name}\nand a long explanation")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"not downloaded \(Couldn't reach ylecun/mnist\); give --data DIR"):
        load("mnist")


def test_real_cifar10(data: Path) -> None:
    images = load("cifar10", data)
    mean = images.train_images.mean((0, 2, 3)) / 255
    # published; a hundred images of this copy are inexact
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-6)
    assert np.bincount(images.test_labels).tolist() == [1000] * 10


def test_real_mnist(data: Path) -> None:
    images = load("mnist", data)
    assert images.train_images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images.train_images.std() / 255 == pytest.approx(0.3081, abs=1e-4)
    assert images.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_the_cache_is_the_users() -> None:
    assert reader._cache_dir().name == "rheostat"
