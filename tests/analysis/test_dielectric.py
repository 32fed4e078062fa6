"""The static dielectric constant of known fluctuations, and the integrated current."""

import numpy as np
import pytest

from mace_polmp.analysis.dielectric import polarization_change, static_permittivity
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN, EPS0


def test_fluctuations_give_the_dielectric_constant():
    rng = np.random.default_rng(0)
    volume, temperature = 1000.0, 300.0
    spread = np.sqrt(79.0 * EPS0 * volume * BOLTZMANN * temperature)  # of each component
    moment = 5.0 + spread * rng.normal(size=(20000, 3))
    result = static_permittivity(moment, volume, temperature, epsilon_infinity=1.8)
    assert result.value == pytest.approx(80.8, rel=0.02)
    assert abs(result.value - 80.8) < 4 * result.error < 5
    assert result.running[-1] == result.value and len(result.running) == 20000
    assert result.running[0] == pytest.approx(1.8)


def test_the_integrated_current_is_the_change_of_polarization():
    times = np.linspace(0, 100, 2001)
    moment = np.stack([np.sin(0.3 * times), times**2, np.cos(times)], axis=1)
    current = np.stack([0.3 * np.cos(0.3 * times), 2 * times, -np.sin(times)], axis=1)
    change = polarization_change(current, times[1])
    np.testing.assert_allclose(change, moment - moment[0], atol=1e-3)


def test_refusals():
    with pytest.raises(InputError, match="too short for a dielectric constant: 5 frames"):
        static_permittivity(np.zeros((5, 3)), 100.0, 300.0)
    with pytest.raises(InputError, match="temperature must be a positive number, got nan"):
        static_permittivity(np.zeros((50, 3)), 100.0, np.nan)
