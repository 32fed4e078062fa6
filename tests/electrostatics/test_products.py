"""Digits that torch is allowed to leave out of a network are not left out of a structure factor."""

import pytest
import torch

from mace_polmp.electrostatics.products import (
    _switch,
    cell_volume,
    full_precision,
    small_product,
)


@pytest.fixture
def rounded(device):
    """Products in single precision with few digits, as users switch on for speed."""
    switch = _switch(device)
    if switch is None or not hasattr(switch, "fp32_precision"):
        pytest.skip("this torch has no such switch")
    before = switch.fp32_precision
    few = "tf32" if device.type == "cuda" else "bf16"
    switch.fp32_precision = few
    yield switch, few
    switch.fp32_precision = before


def test_products_keep_their_digits(rounded, device):
    switch, few = rounded
    torch.manual_seed(0)
    a, b = torch.randn(50, 3, device=device), torch.randn(3, 40, device=device)
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(small_product(a, b), expected, rtol=1e-5, atol=1e-6)
    with full_precision(device):
        assert switch.fp32_precision == "ieee"
        torch.testing.assert_close(a @ b, expected, rtol=1e-5, atol=1e-6)
    assert switch.fp32_precision == few


def test_the_switch_comes_back_after_an_error(rounded, device):
    switch, few = rounded
    with pytest.raises(ValueError, match="stop"), full_precision(device):
        raise ValueError("stop")
    assert switch.fp32_precision == few


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_volume_and_its_derivatives(default, dtype, device):
    """Whatever torch's default dtype; that of torch.linalg.det depends on it."""
    torch.manual_seed(1)
    cell = torch.randn(4, 3, 3, dtype=torch.float64).to(device)
    expected = cell.det().abs()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        cell = cell.to(dtype).requires_grad_(True)
        found = cell_volume(cell)
        (first,) = torch.autograd.grad(found.sum(), cell, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), cell)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(  # dV/dh = V h⁻ᵀ
        first.double(),
        expected[:, None, None] * cell.detach().double().inverse().transpose(1, 2),
        rtol=1e-4,
        atol=1e-5,
    )
    assert found.dtype == first.dtype == second.dtype == dtype
