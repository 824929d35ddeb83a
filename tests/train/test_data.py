from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rheostat.train.data import ImageLoader

MEAN, STD = (0.3, 0.5, 0.4), (0.2, 0.25, 0.3)


def images(num: int = 12, size: int = 6) -> np.ndarray:
    # No pixel is black, so that the padding can be told from the image.
    return np.random.default_rng(0).integers(1, 256, (num, 3, size, size)).astype(np.uint8)


def loader(num: int = 12, batch_size: int = 4, size: int = 6, **settings: Any) -> ImageLoader:
    return ImageLoader(images(num, size), np.arange(num), batch_size, mean=MEAN, std=STD, **settings)


def pixels(x: torch.Tensor) -> np.ndarray:
    """Undo the normalisation."""
    shape = (1, 3, 1, 1)
    return np.rint((x.numpy() * np.reshape(STD, shape) + np.reshape(MEAN, shape)) * 255).astype(np.int64)


def test_without_augmentation_every_image_comes_once_in_order_normalised() -> None:
    x, y = (torch.cat(parts) for parts in zip(*loader(10), strict=True))
    want = (images(10) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert y.tolist() == list(range(10))
    assert y.dtype == torch.int64
    np.testing.assert_allclose(x.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num", "shuffle", "sizes"), [(12, False, [4] * 3), (10, False, [4, 4, 2]), (10, True, [4, 4])]
)
def test_a_shuffled_loader_gives_whole_batches_only(num: int, shuffle: bool, sizes: list[int]) -> None:
    batches = loader(num, shuffle=shuffle)
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes)


def test_signals_are_normalised_as_they_are() -> None:
    signals = np.random.default_rng(0).normal(5, 3, (10, 3, 1, 7)).astype(np.float32)
    batches = ImageLoader(signals, np.arange(10), 4, mean=(5, -2, 400), std=(3, 2, 0.1))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    want = (signals - np.reshape((5, -2, 400), (3, 1, 1))) / np.reshape((3, 2, 0.1), (3, 1, 1))
    assert y.tolist() == list(range(10))
    np.testing.assert_allclose(x.numpy(), want, rtol=1e-5, atol=1e-4)


def test_shuffling_is_a_permutation_and_labels_stay_with_their_images() -> None:
    batches = list(loader(12, shuffle=True))
    labels = torch.cat([y for _, y in batches])
    assert sorted(labels.tolist()) == list(range(12))
    assert labels.tolist() != list(range(12))
    got = np.concatenate([pixels(x) for x, _ in batches])
    np.testing.assert_array_equal(got, images(12)[labels.numpy()])


def test_crop_and_flip_give_windows_of_the_padded_image() -> None:
    crop, size = 2, 6
    seen = set()
    batches = loader(12, size=size, crop=crop, flip=True, shuffle=True)
    for epoch in range(40):
        batches.set_epoch(epoch)
        for x, y in batches:
            for got, label in zip(pixels(x), y.tolist(), strict=True):
                padded = np.pad(images(12, size)[label], ((0, 0), (crop, crop), (crop, crop)))
                found = [
                    (top, left, mirrored)
                    for top in range(2 * crop + 1)
                    for left in range(2 * crop + 1)
                    for mirrored in (False, True)
                    if (
                        got == padded[:, top : top + size, left : left + size][:, :, :: -1 if mirrored else 1]
                    ).all()
                ]
                assert len(found) == 1
                seen.add(found[0])
    assert len(seen) == (2 * crop + 1) ** 2 * 2  # every window, both ways round


def test_crop_alone_never_mirrors_and_flip_alone_never_shifts() -> None:
    (x, _), *_ = loader(12, 12, flip=True)
    same, mirrored = images(12), images(12)[..., ::-1]
    for got, plain, other in zip(pixels(x), same, mirrored, strict=True):
        assert (got == plain).all() or (got == other).all()
    (x, _), *_ = loader(12, 12, crop=1)
    for got, plain in zip(pixels(x), same, strict=True):
        padded = np.pad(plain, ((0, 0), (1, 1), (1, 1)))
        assert any((got == padded[:, i : i + 6, j : j + 6]).all() for i in range(3) for j in range(3))


def test_order_and_augmentation_depend_on_seed_and_epoch_only() -> None:
    def epoch(batches: ImageLoader, number: int) -> torch.Tensor:
        batches.set_epoch(number)
        return torch.cat([x for x, _ in batches])

    settings = {"shuffle": True, "crop": 1, "flip": True}
    first, second = loader(**settings), loader(**settings)
    want = [epoch(first, number) for number in range(3)]
    torch.manual_seed(123)
    assert torch.equal(epoch(second, 2), want[2])
    assert torch.equal(epoch(second, 0), want[0])
    assert torch.equal(torch.cat([x for x, _ in second]), want[1])  # the next pass is the next epoch
    assert not torch.equal(want[0], want[1])
    assert not torch.equal(epoch(loader(seed=1, **settings), 0), want[0])


def test_a_cycle_gives_the_first_epochs_again() -> None:
    settings = {"shuffle": True, "crop": 1, "flip": True}
    endless, cyclic = loader(**settings), loader(cycle=2, **settings)
    first = [[x for x, _ in endless] for _ in range(2)]
    for number in (0, 1, 0, 1):
        assert all(map(torch.equal, first[number], [x for x, _ in cyclic]))
    assert repr(cyclic) == repr(endless)[:-1] + ", cycle=2)"


def test_channels_last_changes_the_layout_only() -> None:
    (plain, _), (last, _) = (
        next(iter(loader(size=5, shuffle=True, crop=1, channels_last=flag))) for flag in (False, True)
    )
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(shuffle=True, crop=1, flip=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_are_its_own() -> None:
    given, labels = images()[:, :1], np.arange(12)
    batches = ImageLoader(given, labels, 12, mean=(0.5,), std=(0.5,))
    ((before, _),) = batches
    given[:], labels[:] = 255 - given, 0
    ((after, y),) = batches
    assert torch.equal(before, after) and y.tolist() == list(range(12))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32])
def test_labels_of_any_integers(kind: type[np.generic]) -> None:
    ((_, y),) = ImageLoader(images(), np.arange(12).astype(kind), 12, mean=MEAN, std=STD)
    assert y.dtype == torch.int64 and y.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images().astype(np.float64)}, "uint8 or float32"),
        ({"images": images()[0]}, r"\[M,C,H,W\]"),
        ({"images": images()[:0], "labels": np.arange(0)}, "empty"),
        ({"labels": np.arange(11)}, "one integer label"),
        ({"labels": np.zeros(12)}, "one integer label"),
        ({"labels": np.zeros((12, 1), np.int64)}, "one integer label"),
        ({"labels": np.full(12, -1)}, "label -1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 13, "shuffle": True}, "batch_size=13"),
        ({"mean": (0.5,)}, "3 numbers"),
        ({"mean": (120.0, 120.0, 120.0)}, "pixels / 255"),
        ({"std": (0.1, 0.0, 0.1)}, "above 0"),
        ({"std": (0.1, math.nan, 0.1)}, "all finite"),
        ({"images": images().astype(np.float32), "mean": (0.0, math.inf, 0.0)}, "all finite"),
        ({"crop": -1}, "crop=-1"),
        ({"cycle": 0}, "cycle=0"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "images": images(),
        "labels": np.arange(12),
        "batch_size": 4,
        "mean": MEAN,
        "std": STD,
    } | change
    with pytest.raises(ValueError, match=message):
        ImageLoader(**arguments)
