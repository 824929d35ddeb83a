"""Small sets of images or signals that live on the training device and are augmented there, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rheostat.train.distributed import num_processes, rank


class ImageLoader:
    """Batches `(x float32 [N,C,H,W], y int64 [N])` of an image set that is kept as it is on `device`.

    images: uint8 [M,C,H,W], or signals float32; labels: integers [M]; both numpy or torch. `mean` and `std` are per
    channel, of `pixels / 255` or of the signals as they are. `crop=4` pads every side with 4 black pixels and cuts a
    random window of the original size; `flip` mirrors half of the images. `shuffle=True` is for training: a new order
    each epoch, and the last incomplete batch is left out (it comes back in another place), so that every batch has one
    shape; with `shuffle=False` every image comes once, in order. `channels_last` gives batches in that memory format at
    no cost. `cycle=20` gives the batches of the first 20 epochs again and again: `fit` then asks a teacher about each
    once and remembers the answers, 20 times M of its outputs (Shen and Xing, FKD, ECCV 2022).

    Where several processes train together (`torch.distributed`), `batch_size` is that of all of them, and each takes
    its share of every shuffled batch.

    Order and augmentation depend on `(seed, epoch)` only, on every device: `set_epoch(e)` chooses the epoch of the next
    pass, and each pass that is started moves on by one. So resumed training needs no loader state.

    Raises ValueError for an empty set, a wrong dtype or shape, or a batch larger than a shuffled set.

    >>> loader = ImageLoader(np.zeros((10, 3, 8, 8), np.uint8), np.arange(10), 4, mean=[0.5] * 3, std=[0.25] * 3)
    >>> [tuple(x.shape) for x, y in loader]
    [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        crop: int = 0,
        flip: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        cycle: int | None = None,
    ) -> None:
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        _check(images, labels, batch_size, mean, std, crop, shuffle, cycle)
        # Stored [M,H,W,C]: a gathered batch is then channels-last without a copy.
        images = images.permute(0, 2, 3, 1)
        self._images_MHWC = images.to(device, copy=True, memory_format=torch.contiguous_format)
        self._labels_M = labels.to(device, torch.int64, copy=True)
        scale = 1 / torch.tensor(std, dtype=torch.float64)
        self._scale_C = (scale / (255 if images.dtype == torch.uint8 else 1)).float().to(device)
        self._shift_C = (-torch.tensor(mean, dtype=torch.float64) * scale).float().to(device)
        self.batch_size, self.mean, self.std = batch_size, tuple(mean), tuple(std)
        self.crop, self.flip, self.shuffle, self.seed = crop, flip, shuffle, seed
        self.channels_last, self.cycle = channels_last, cycle
        self._epoch = 0

    def __len__(self) -> int:
        num_images = len(self._labels_M)
        return num_images // self.batch_size if self.shuffle else -(-num_images // self.batch_size)

    def __repr__(self) -> str:
        shape = tuple(self._images_MHWC.shape)
        return (
            f"ImageLoader({shape[0]} images {shape[3]}x{shape[1]}x{shape[2]}, batch_size={self.batch_size}, "
            f"mean={self.mean}, std={self.std}, crop={self.crop}, flip={self.flip}, "
            f"shuffle={self.shuffle}, seed={self.seed}"
            f"{'' if self.cycle is None else f', cycle={self.cycle}'})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        epoch = epoch if self.cycle is None else epoch % self.cycle
        # Drawn on the CPU so that every device sees the same numbers; all of an epoch at once, so that a GPU is asked
        # to wait once an epoch and not once a batch.
        device, num_images = self._labels_M.device, len(self._labels_M)
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order_M = (
            torch.randperm(num_images, generator=generator) if self.shuffle else torch.arange(num_images)
        )
        corners_M2 = torch.randint(2 * self.crop + 1, (num_images, 2), generator=generator).to(device)
        mirrored_M = (torch.rand(num_images, generator=generator) < 0.5).to(device)
        order_M = order_M.to(device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = range(num_images)[start : start + self.batch_size]
            batch = _share(batch) if self.shuffle else batch
            batch = slice(batch.start, batch.stop, batch.step)
            x_NHWC = self._images_MHWC[order_M[batch]]
            if self.crop or self.flip:
                x_NHWC = _augment(
                    x_NHWC, self.crop, corners_M2[batch], mirrored_M[batch] if self.flip else None
                )
            x_NCHW = (x_NHWC.float() * self._scale_C + self._shift_C).permute(0, 3, 1, 2)
            yield (x_NCHW if self.channels_last else x_NCHW.contiguous()), self._labels_M[order_M[batch]]


def _share(batch: range) -> range:
    """What this process takes of a batch when several train together: every n-th image."""
    num = num_processes()
    if len(batch) % num:
        raise ValueError(
            f"ImageLoader: got batch_size={len(batch)} for {num} processes; want a multiple of {num}."
        )
    return batch[rank() :: num]


def _augment(x_NHWC: Tensor, crop: int, corners_N2: Tensor, mirrored_N: Tensor | None) -> Tensor:
    """Cut an H x W window at each image's corner out of the padded image, and mirror the chosen ones: one gather."""
    num, height, width, _ = x_NHWC.shape
    padded = F.pad(x_NHWC, (0, 0, crop, crop, crop, crop))
    image_N11 = torch.arange(num, device=x_NHWC.device)[:, None, None]
    rows_NH = corners_N2[:, :1] + torch.arange(height, device=x_NHWC.device)
    columns_NW = corners_N2[:, 1:] + torch.arange(width, device=x_NHWC.device)
    if mirrored_N is not None:
        columns_NW = torch.where(mirrored_N[:, None], columns_NW.flip(1), columns_NW)
    return padded[image_N11, rows_NH[:, :, None], columns_NW[:, None, :]]


def epoch_seed(seed: int, epoch: int) -> int:
    """The generator seed of an epoch. 32 bits, well mixed: torch's CPU generator ignores the upper half of a seed."""
    return int(np.random.SeedSequence((int(seed) % 2**64, epoch)).generate_state(1)[0])


def _check(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: int,
    shuffle: bool,
    cycle: int | None,
) -> None:
    got = f"images {images.dtype} {list(images.shape)}, labels {labels.dtype} {list(labels.shape)}"
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(
            f"ImageLoader: got {got}; want uint8 or float32 [M,C,H,W]. Convert them before loading."
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"ImageLoader: got {got}; want one integer label for each image.")
    if len(images) == 0:
        raise ValueError("ImageLoader: got an empty image set; want at least one image.")
    if (lowest := int(labels.to(torch.int64).min())) < 0:
        raise ValueError(
            f"ImageLoader: got the label {lowest}; want labels from 0. Remove unlabelled images."
        )
    if batch_size < 1 or (shuffle and batch_size > len(images)):
        raise ValueError(
            f"ImageLoader: got batch_size={batch_size} for {len(images)} images; want 1 to {len(images)} "
            "(a shuffled loader gives whole batches only)."
        )
    channels = images.shape[1]
    pixels = images.dtype == torch.uint8
    if (
        len(mean) != channels
        or len(std) != channels
        or not np.isfinite([*mean, *std]).all()
        or min(std) <= 0
        or (pixels and not 0 <= min(mean) <= max(mean) <= 1)
    ):
        raise ValueError(
            f"ImageLoader: got mean={list(mean)}, std={list(std)}; want {channels} numbers each, one a channel: "
            f"all finite, deviations above 0{', means of pixels / 255 from 0 to 1' * pixels}."
        )
    if crop < 0:
        raise ValueError(
            f"ImageLoader: got crop={crop}; want the padding of the random crop in pixels, 0 for none."
        )
    if cycle is not None and cycle < 1:
        raise ValueError(f"ImageLoader: got cycle={cycle}; want at least one epoch, or None.")
