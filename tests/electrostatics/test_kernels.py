"""Boys functions and smeared kernels against closed forms."""

import math

import pytest
import torch
from scipy.special import gamma, gammainc

from mace_polmp.electrostatics import kernels
from mace_polmp.units import COULOMB_CONSTANT
from tests.devices import there

pytestmark = pytest.mark.usefixtures("device")

boys_functions, smeared_kernels = there(kernels.boys_functions), there(kernels.smeared_kernels)

T = torch.tensor([1e-8, 1e-3, 0.3, 2.0, 7.5, 11.99, 12.01, 20.0, 60.0, 900.0], dtype=torch.float64)


@pytest.mark.parametrize("order", [0, 2, 4, 7])
def test_boys_functions_are_the_incomplete_gamma_function(order):
    computed = boys_functions(T, order)
    for n in range(order + 1):
        a = n + 0.5
        exact = gamma(a) * gammainc(a, T.numpy()) / (2 * T.numpy() ** a)
        torch.testing.assert_close(computed[n], torch.tensor(exact), rtol=1e-12, atol=0)


def test_boys_functions_at_zero():
    computed = boys_functions(torch.zeros(1, dtype=torch.float64), 6)[:, 0]
    exact = torch.tensor([1 / (2 * n + 1) for n in range(7)], dtype=torch.float64)
    torch.testing.assert_close(computed, exact, rtol=1e-15, atol=0)


def test_float32_keeps_its_digits_at_every_distance():
    """The upward recursion in 1/r² would lose them all below 0.3 Å."""
    t = torch.logspace(-6, 3, 400, dtype=torch.float64)
    double, single = boys_functions(t, 5), boys_functions(t.float(), 5)
    t_rounded = boys_functions(t.float().double(), 5)
    assert ((single.double() - t_rounded) / t_rounded).abs().max() < 2e-6
    assert double.isfinite().all()


def test_derivatives_to_fourth_order():
    t = torch.tensor([0.0, 0.4, 5.0, 11.9, 12.1, 40.0], dtype=torch.float64, requires_grad=True)
    value = boys_functions(t, 0)[0]
    for n in range(1, 5):
        (value,) = torch.autograd.grad(value.sum(), t, create_graph=True)
        torch.testing.assert_close(value, (-1) ** n * boys_functions(t, n)[n], rtol=1e-11, atol=0)
    assert torch.autograd.gradcheck(
        lambda x: boys_functions(x, 3), (t[1:].detach().requires_grad_(),)
    )


def test_kernels_are_derivatives_of_the_smeared_potential():
    sigma = 0.8
    r = torch.tensor([0.2, 1.0, 3.0, 6.0, 15.0], dtype=torch.float64, requires_grad=True)
    b = smeared_kernels(r**2, sigma, 4)
    value = COULOMB_CONSTANT * torch.erf(r / (math.sqrt(2) * sigma)) / r
    for n in range(5):
        torch.testing.assert_close(b[n], value, rtol=1e-7, atol=0)
        value = -torch.autograd.grad(value.sum(), r, create_graph=True)[0] / r
