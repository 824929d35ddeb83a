"""Batch norm in rows against torch's own, in float64 where the two may differ in the last bits alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rheostat.train.norm import RowNorm2d, norms_in_rows


def images(channels: int, dtype: torch.dtype = torch.float64, mean: float = 0.0) -> Tensor:
    x = torch.randn(6, channels, 5, 7, generator=torch.Generator().manual_seed(channels)) * 2 + mean
    return x.to(dtype, memory_format=torch.channels_last)


def norm_of(channels: int, dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels, momentum=0.3).to(dtype)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    return norm


@pytest.mark.parametrize("channels", [1, 4, 11, 16])
def test_equals_batch_norm_forward_and_backward(channels: int) -> None:
    stock, x = norm_of(channels), images(channels)
    ours = copy.deepcopy(stock)
    wanted, weights = [], torch.randn(x.shape, dtype=x.dtype)
    for norm in (stock, ours):
        leaf = x.clone().requires_grad_()
        with norms_in_rows([ours]):
            for _ in range(2):  # the second time with statistics that have moved
                y = norm(leaf)
                (y * weights).sum().backward()
            assert type(ours) is RowNorm2d
        assert y.is_contiguous(memory_format=torch.channels_last)
        wanted.append([y, leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    assert type(ours) is nn.BatchNorm2d
    assert ours.num_batches_tracked == stock.num_batches_tracked == 2
    for got, want in zip(wanted[1], wanted[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_a_large_mean_costs_no_digits() -> None:
    x = images(3, torch.float32, mean=1e4)
    ours, exact = RowNorm2d(3), nn.BatchNorm2d(3).double()
    torch.testing.assert_close(ours(x).double(), exact(x.double()), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(ours.running_var.double(), exact.running_var, rtol=1e-6, atol=0)


def test_bfloat16_is_computed_in_float32() -> None:
    x = images(5, torch.bfloat16)
    stock, ours = norm_of(5, torch.float32), norm_of(5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), norms_in_rows([ours]):
        want, got = stock(x), ours(x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(ours.running_var, stock.running_var)


def test_one_value_a_channel_is_refused_as_ever() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        RowNorm2d(3)(torch.ones(1, 3, 1, 1))


def test_evaluation_and_other_norms_are_left_alone() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None))
    stock, x = copy.deepcopy(net).eval(), images(3, torch.float32)
    with norms_in_rows([net]):
        assert [type(norm) is RowNorm2d for norm in net] == [True, False, False]
        assert torch.equal(net.eval()(x), stock(x))
    assert [type(norm) for norm in net] == [nn.BatchNorm2d] * 3
