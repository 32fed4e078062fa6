"""The static dielectric constant of known fluctuations, and the integrated current."""

import numpy as np
import pytest
from scipy.signal import lfilter

from mace_polmp.analysis.dielectric import polarization_change, static_permittivity
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN, EPS0

VOLUME, TEMPERATURE = 1000.0, 300.0
SCALE = 1.0 / (3.0 * EPS0 * VOLUME * BOLTZMANN * TEMPERATURE)


def permittivity(moment, timestep=1.0, **more):
    return static_permittivity(moment, VOLUME, TEMPERATURE, timestep=timestep, **more)


def forgetful(n_times, memory, rng, spread=1.2):
    """A polarization that forgets in so many frames: ⟨M(0)M(t)⟩ = s² e^{−t/τ}."""
    keep = np.exp(-1.0 / memory)
    noise = rng.normal(size=(n_times + int(20 * memory), 3)) * spread * np.sqrt(1 - keep**2)
    return lfilter([1.0], [1.0, -keep], noise, axis=0)[-n_times:]


def test_fluctuations_give_the_dielectric_constant():
    rng = np.random.default_rng(0)
    spread = np.sqrt(79.0 * EPS0 * VOLUME * BOLTZMANN * TEMPERATURE)  # of each component
    moment = 5.0 + spread * rng.normal(size=(20000, 3))
    result = permittivity(moment, epsilon_infinity=1.8)
    assert result.value == pytest.approx(80.8, rel=0.02)
    assert abs(result.value - 80.8) < 4 * result.error < 5
    assert result.running[-1] == pytest.approx(result.value)
    assert len(result.running) == 20000
    assert result.running[0] == pytest.approx(1.8)
    assert result.memory == pytest.approx(0.5, abs=0.1)  # none beyond the frame itself


def test_the_error_bar_is_how_much_runs_differ():
    """Of runs of 60 correlation times, that forget in 300 fs and are written every 4 fs."""
    rng = np.random.default_rng(1)
    true = 1.0 + 3.0 * SCALE * 1.2**2
    found = [permittivity(forgetful(4500, 75.0, rng), 4.0) for _ in range(40)]
    values = np.array([f.value for f in found])
    errors = np.array([f.error for f in found])
    assert values.mean() == pytest.approx(true, abs=4 * values.std() / np.sqrt(40))
    assert errors.mean() == pytest.approx(values.std(), rel=0.4)
    assert np.mean([f.memory for f in found]) == pytest.approx(300.0, rel=0.15)
    assert (np.abs(values - true) < 3 * errors).mean() > 0.9


def test_runs_that_have_not_come_to_rest_are_refused():
    """Shorter than what the polarization remembers, or ions that travel however long the run."""
    rng = np.random.default_rng(2)
    short = [forgetful(300, 300.0, rng) for _ in range(20)]
    walks = [np.cumsum(rng.normal(size=(n, 3)), axis=0) for n in (2500, 10000, 40000)]
    for moment in (*short, *walks):
        with pytest.raises(InputError, match="has not come to rest in .* a conductor has no"):
            permittivity(moment, 4.0)


def test_the_integrated_current_is_the_change_of_polarization():
    times = np.linspace(0, 100, 2001)
    moment = np.stack([np.sin(0.3 * times), times**2, np.cos(times)], axis=1)
    current = np.stack([0.3 * np.cos(0.3 * times), 2 * times, -np.sin(times)], axis=1)
    change = polarization_change(current, times[1])
    np.testing.assert_allclose(change, moment - moment[0], atol=1e-3)


def test_currents_that_are_too_far_apart_are_not_integrated():
    """An O-H stretch every 9 fs looks like a drift."""
    with pytest.raises(InputError, match="currents 9 fs apart cannot be integrated.*at most 6.7"):
        polarization_change(np.zeros((100, 3)), 9.0)


def test_refusals():
    with pytest.raises(InputError, match="too short for a dielectric constant: 5 frames"):
        static_permittivity(np.zeros((5, 3)), 100.0, 300.0)
    with pytest.raises(InputError, match="temperature must be a positive number, got nan"):
        static_permittivity(np.zeros((500, 3)), 100.0, np.nan)
    with pytest.raises(InputError, match="epsilon_infinity must be a number of 1 or more, got 0.5"):
        permittivity(np.zeros((500, 3)), epsilon_infinity=0.5)
    with pytest.raises(InputError, match="the polarization does not change"):
        permittivity(np.zeros((500, 3)))
