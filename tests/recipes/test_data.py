"""The readers of data sets: packed files written here by another program, and the real ones where they are."""

from __future__ import annotations

import io
import lzma
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rheostat_recipes import data as reader
from rheostat_recipes.data import load
from rheostat_recipes.files import window


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


@pytest.mark.parametrize("name", ["mnist", "cifar10", "har", "speech", "imagenette"])
def test_damaged_files_are_named(
    name: str, packed: tuple[Path, np.ndarray], cache: Path, tmp_path: Path
) -> None:
    """Cut off, empty, something else, and an archive of other arrays."""
    path = {
        "mnist": "mnist.npz.xz",
        "cifar10": "cifar10/labels.npz",
        "har": "har.npz.xz",
        "speech": "speech_commands_mel.npz",
        "imagenette": "imagenette112_webp.npz",
    }[name]
    file = io.BytesIO()
    np.savez(file, other=np.zeros(9))
    other = lzma.compress(file.getvalue()) if path.endswith(".xz") else file.getvalue()
    (tmp_path / "cifar10").mkdir()
    for content in (other[:-20], b"", b"<html>not found</html>", other):
        (tmp_path / path).write_bytes(content)
        with pytest.raises(ValueError, match=r"not what it should hold .*fetch it again") as caught:
            load(name, tmp_path)
        assert str(caught.value).startswith(str(tmp_path / path))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "UCI HAR Dataset.zip").write_bytes(b"PK not quite")
    with pytest.raises(ValueError, match=r"UCI HAR Dataset.zip: not what it should hold"):
        load("har", tmp_path)


def test_a_damaged_part_and_a_damaged_cache(
    packed: tuple[Path, np.ndarray], cache: Path, tmp_path: Path
) -> None:
    folder, images = packed
    load("cifar10", folder)
    for path in cache.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:60])
    np.testing.assert_array_equal(load("cifar10", folder).train_images, images[:10])
    shutil.copytree(folder / "cifar10", tmp_path / "cifar10")
    (tmp_path / "cifar10" / "train_3.xz").write_bytes(pack(images[:2])[:-30])
    with pytest.raises(ValueError, match=r"train_3.xz: not what it should hold"):
        load("cifar10", tmp_path)


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
    with pytest.raises(ValueError, match="got 'emnist'; want one of: digits, mnist, cifar10, har, speech"):
        load("emnist")
    with pytest.raises(ValueError, match=r"mnist\.npz\.xz: no such file; want --data DIR"):
        load("mnist", tmp_path)
    with pytest.raises(ValueError, match=r"labels\.npz: no such file"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("har", r"har\.npz\.xz: no such file"),
        ("speech", r"speech_commands_mel\.npz: no such file"),
        ("speech_wav", r"speech_commands_v0\.02: no testing_list\.txt"),
        ("imagenette", r"imagenette112_webp\.npz: no such file, nor the folder imagenette2"),
        ("imagenet", r"imagenet/train: no folder of images"),
    ],
)
def test_what_cannot_be_downloaded(name: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: got no --data DIR"):
        load(name)
    with pytest.raises(ValueError, match=missing):
        load(name, tmp_path)


# ---- signals ----


def test_har_from_half_windows(tmp_path: Path) -> None:
    """Five half windows of which four windows are made, one of them not the neighbour of the others."""
    halves = np.random.default_rng(0).integers(-4096, 4096, (9, 7, 64)).astype(np.int16)
    start = np.array([0, 1, 5, 2], np.int16)
    arrays = {"halves": halves, "start": start, "y": np.array([5, 0, 1, 2], np.uint8)}
    is_train = np.array([True, False, True, True])
    stream = io.BytesIO()
    np.savez(stream, **arrays, is_train=is_train, scale=np.float32(1 / 4096))
    (tmp_path / "har.npz.xz").write_bytes(lzma.compress(stream.getvalue()))
    got = load("har", tmp_path)
    assert got.train_images.shape == (3, 9, 1, 128)
    assert got.train_images.dtype == np.float32
    for signals, s in zip([*got.train_images, *got.test_images], [0, 5, 2, 1], strict=True):
        for channel in range(9):
            want = [*halves[channel, s], *halves[channel, s + 1]]
            np.testing.assert_array_equal(signals[channel, 0] * 4096, want)
    assert (got.train_labels.tolist(), got.test_labels.tolist(), got.num_classes) == ([5, 1, 2], [0], 6)
    x = got.normalized(got.train_images)
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=1e-3)


def test_har_from_the_archive(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).normal(size=(2, 9, 3, 128))
    channels = [f"{s}_{a}" for s in ("body_acc", "body_gyro", "total_acc") for a in "xyz"]
    with zipfile.ZipFile(tmp_path / "UCI HAR Dataset.zip", "w") as archive:
        for part, signals in zip(("train", "test"), windows, strict=True):
            for channel, lines in zip(channels, signals, strict=True):
                text = "\n".join(" ".join(f"{v: .7e}" for v in line) for line in lines)
                archive.writestr(f"UCI HAR Dataset/{part}/Inertial Signals/{channel}_{part}.txt", text)
            archive.writestr(f"UCI HAR Dataset/{part}/y_{part}.txt", "6\n1\n2\n")
    got = load("har", tmp_path)
    np.testing.assert_allclose(got.train_images[:, :, 0], windows[0].swapaxes(0, 1), rtol=1e-6)
    np.testing.assert_allclose(got.test_images[:, :, 0], windows[1].swapaxes(0, 1), rtol=1e-6)
    assert got.test_labels.tolist() == [5, 0, 1]
    with zipfile.ZipFile(tmp_path / "UCI HAR Dataset.zip", "w") as archive:
        archive.writestr("other.txt", "1")
    with pytest.raises(
        ValueError, match=r"no item named .*train/Inertial Signals/body_acc_x_train\.txt.* fetch it"
    ):
        load("har", tmp_path)


# ---- photographs and spectrograms ----


def encoded(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **settings)
    return stream.getvalue()


def test_packed_speech(tmp_path: Path, cache: Path) -> None:
    """JPEGs whose equal beginnings are stored once; training, validation and test part in turn."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (98, 40), dtype=np.uint8) for _ in range(6)]
    files = [encoded(picture, "JPEG", quality=95) for picture in pictures]
    header = files[0][:300]
    assert all(file.startswith(header) for file in files)
    tails = [file[len(header) :] for file in files]
    np.savez(
        tmp_path / "speech_commands_mel.npz",
        jpeg_header=np.frombuffer(header, np.uint8),
        jpeg_tails=np.frombuffer(b"".join(tails), np.uint8),
        offset=np.cumsum([0, *map(len, tails)]),
        label=np.array([3, 4, 11, 0, 1, 2], np.uint8),
        split=np.array([0, 1, 2, 0, 1, 2], np.uint8),
    )
    for _ in range(2):  # the second time from the cache
        got = load("speech", tmp_path)
        assert got.train_images.shape == (2, 1, 98, 40)
        for image, index in zip([*got.train_images, *got.test_images], [0, 3, 2, 5], strict=True):
            np.testing.assert_array_equal(image[0], np.asarray(Image.open(io.BytesIO(files[index]))))
        assert (got.train_labels.tolist(), got.test_labels.tolist()) == ([3, 0], [11, 2])
    (kept,) = cache.iterdir()
    assert kept.name.startswith("speech-")


def test_packed_imagenette(tmp_path: Path, cache: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    files = [encoded(picture, "WEBP", lossless=True) for picture in pixels]
    np.savez(
        tmp_path / "imagenette112_webp.npz",
        webp=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.array([9, 0, 4], np.uint8),
        is_train=np.array([True, False, True]),
    )
    got = load("imagenette", tmp_path)
    np.testing.assert_array_equal(got.train_images.transpose(0, 2, 3, 1), pixels[[0, 2]])
    np.testing.assert_array_equal(got.test_images.transpose(0, 2, 3, 1), pixels[[1]])
    assert (got.train_labels.tolist(), got.test_labels.tolist()) == ([9, 4], [0])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of pictures, their left half red and the right one blue, wider than high or the other way round."""
    for folder in ("imagenette2-160", "imagenet"):
        for part, sizes in (("train", [(300, 200), (200, 300)]), ("val", [(120, 112)])):
            for name in ("n02", "n01"):
                (tmp_path / folder / part / name).mkdir(parents=True)
                for number, (width, height) in enumerate(sizes):
                    pixels = np.zeros((height, width, 3), np.uint8)
                    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
                    (tmp_path / folder / part / name / f"{number}.JPEG").write_bytes(encoded(pixels, "PNG"))
    (tmp_path / "imagenet" / "train" / "n01" / "notes.txt").write_text("not an image")
    (tmp_path / "imagenet" / "val" / ".hidden").mkdir()
    return tmp_path


def test_other_classes_in_the_test_than_in_training(folders: Path) -> None:
    (folders / "imagenet" / "val" / "n01").rename(folders / "imagenet" / "val" / "n00")
    with pytest.raises(ValueError, match="imagenet: class 'n00' is in one of train and val only"):
        load("imagenet", folders)


def test_folders_of_images(folders: Path) -> None:
    small, large = load("imagenette", folders), load("imagenet", folders)
    assert small.train_images.shape == (4, 3, 112, 112)
    assert large.train_images.shape == (4, 3, 224, 224)
    assert small.train_labels.tolist() == large.train_labels.tolist() == [0, 0, 1, 1]
    assert large.test_labels.tolist() == [0, 1]
    assert len(large.test_images) == 2
    pixels = large.train_images[np.array([3, 0])]
    np.testing.assert_array_equal(pixels[0], large.train_images[3:][0])
    for picture in (*small.train_images, *small.test_images, *pixels):
        half = picture.shape[2] // 2
        assert picture.dtype == np.uint8
        # the middle is kept: red up to the middle column, and blue from there
        assert picture[0, :, : half - 2].min() > 195
        assert picture[2, :, : half - 2].max() < 5
        assert picture[2, :, half + 2 :].min() > 195
    x = large.normalized(large.test_images[:1])
    assert x[0, 1].mean() == pytest.approx(-0.456 / 0.224, abs=1e-3)


def test_a_window_is_inside_and_as_random_as_told() -> None:
    ramp = np.broadcast_to(np.arange(250, dtype=np.uint8)[None, :, None], (160, 250, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    whole = window(image, 64, (1, 0.5, 0, 0, 0))
    assert whole.shape == (64, 64, 3)
    assert np.all(np.diff(whole[0, :, 0].astype(int)) > 0)
    np.testing.assert_array_equal(window(image, 64, (1, 0.5, 0, 0, 0.5)), whole[:, ::-1])
    rng = np.random.default_rng(0)
    for _ in range(50):
        share, shape, left, top, mirrored = rng.random(5)
        cut = window(image, 64, (share, shape, left, top, mirrored))[..., 0].astype(float)
        cut = cut[:, ::-1] if mirrored >= 0.5 else cut
        width = (cut[:, 63] - cut[:, 0]).mean() * 64 / 63
        area = (0.08 + 0.92 * share) * 160 * 250
        want = min(np.sqrt(area * (4 / 3) ** (2 * shape - 1)), 250)
        assert width == pytest.approx(want, abs=3)
        assert cut[:, 0].mean() == pytest.approx(left * (250 - want) + want / 128, abs=3)


def test_a_broken_image_names_its_file(folders: Path) -> None:
    (folders / "imagenet" / "val" / "n01" / "0.JPEG").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"n01/0\.JPEG: not an image that Pillow can read"):
        _ = load("imagenet", folders).test_images[:]


def test_without_pillow_the_message_names_the_extra(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r'Pillow is not installed; run pip install "rheostat\[data\]"'):
        load("imagenette", folders)


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


def test_real_har(data: Path) -> None:
    images = load("har", data)
    # Anguita et al. 2013: walking, upstairs, downstairs, sitting, standing, laying
    assert np.bincount(images.train_labels).tolist() == [1226, 1073, 986, 1286, 1374, 1407]
    assert np.bincount(images.test_labels).tolist() == [496, 471, 420, 491, 532, 537]
    gravity = np.linalg.norm(images.test_images[:, 6:9, 0], axis=1).mean()
    assert gravity == pytest.approx(1, abs=0.05)  # total acceleration is in units of g


@pytest.mark.slow
def test_real_speech(data: Path) -> None:
    images = load("speech", data)
    assert (len(images.train_images), len(images.test_images)) == (41_464, 5_429)
    assert images.num_classes == 12
    pixels = images.train_images / 255
    assert images.mean[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert images.std[0] == pytest.approx(pixels.std(), abs=1e-4)


@pytest.mark.slow
def test_real_imagenette(data: Path) -> None:
    images = load("imagenette", data)
    assert images.train_images.shape == (9_469, 3, 112, 112)
    # the counts of Imagenette2's own folders, in the order of their names
    assert np.bincount(images.test_labels).tolist() == [387, 395, 357, 386, 409, 394, 389, 419, 399, 390]


def test_the_cache_is_the_users() -> None:
    assert reader._cache_dir().name == "rheostat"
