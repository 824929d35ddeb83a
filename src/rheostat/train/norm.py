"""Batch norm that `torch.compile` can vectorise on a CPU, where images have their channels last and those are few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def norms_in_rows(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Compute the batch norms of `modules` that lie on a CPU as `RowNorm2d` does, for as long as it lasts."""
    norms = [part for module in modules for part in module.modules() if type(part) is nn.BatchNorm2d]
    norms = [norm for norm in norms if norm.affine and norm.track_running_stats and norm.momentum is not None]
    norms = [norm for norm in norms if norm.weight.device.type == "cpu"]
    for norm in norms:
        norm.__class__ = RowNorm2d
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


class RowNorm2d(nn.BatchNorm2d):
    """The same function, summed over columns of `[N, H, W * C]`, a view of channels-last images.

    The compiler vectorises the innermost axis. Where that is C, as in the stock norm, 11 channels are done one by one;
    a row is long enough, whatever C is. What belongs to a channel goes to its columns by a product with `[C, W * C]`
    copies of the identity, and back: unlike an index, the compiler does not draw that into the loop.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`."""
        count = input.numel() // input.shape[1]
        if not self.training or count == 1:  # stock says what is wrong with one
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.autocast(input.device.type, enabled=False):
            y, mean, variance = _RowNorm.apply(input, self.weight, self.bias, self.eps)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
                self.num_batches_tracked.add_(1)
        return y


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, mean and biased variance of the batch; sums are taken about the first image's mean.

        It is of the batch's size, and squares then keep their digits, wherever the running mean still is.
        """
        spread, rows = _copies(x), _rows(x)
        near = spread @ rows[0].sum(0) / (x.shape[2] * x.shape[3])
        off = rows - near @ spread
        first, second = _sums(off, off * off, spread) / (x.numel() // x.shape[1])
        variance = (second - first * first).clamp(min=0)
        mean, scale = near + first, torch.rsqrt(variance + eps)
        slope, start = torch.stack([weight * scale, bias - mean * weight * scale]) @ spread
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.mark_non_differentiable(mean, variance)
        return _images(rows * slope + start, x), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """`dx = weight * scale * (dy - mean(dy) - normed * mean(dy * normed))`."""
        x, weight, mean, scale = ctx.saved_tensors
        spread, dy, count = _copies(x), _rows(grads[0]), x.numel() // x.shape[1]
        off = _rows(x) - mean @ spread
        d_bias, d_scaled = _sums(dy, dy * off, spread)
        slope, d_weight = weight * scale, d_scaled * scale
        a, b, c = torch.stack([slope, slope * scale * d_weight / count, slope * d_bias / count]) @ spread
        return _images(a * dy - b * off - c, x), d_weight, d_bias, None


def _rows(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N, H, W * C]`, at least float32."""
    return x.permute(0, 2, 3, 1).flatten(2).to(torch.promote_types(x.dtype, torch.float32))


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Back again, in the type of `like`."""
    n, c, h, w = like.shape
    return rows.to(like.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _copies(x: Tensor) -> Tensor:
    """`[C, W * C]`: one where a column belongs to a channel."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return torch.eye(x.shape[1], device=x.device, dtype=kind).repeat(1, x.shape[3])


def _sums(first: Tensor, second: Tensor, spread: Tensor) -> Tensor:
    """`[2, C]`: sums over all that belongs to a channel."""
    return torch.stack([first.sum(1).sum(0), second.sum(1).sum(0)]) @ spread.T
