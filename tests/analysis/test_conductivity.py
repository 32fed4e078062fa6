"""Conductivities of charges that move as is known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from mace_polmp.analysis.conductivity import conductivity
from mace_polmp.errors import InputError
from mace_polmp.units import AMU, BOLTZMANN

VOLUME, TEMPERATURE = 2000.0, 1500.0
E = 1.602176634e-19  # C


def brownian(n_times, timestep, friction, rng, n, mass=20.0):
    """Velocities of independent Langevin particles, [n_times, n, 3], Å/fs; D = kT/(m γ)."""
    spread = np.sqrt(BOLTZMANN * TEMPERATURE / (mass * AMU))
    keep = np.exp(-friction * timestep)
    noise = spread * np.sqrt(1 - keep**2) * rng.normal(size=(n_times, n, 3))
    noise[0] = spread * rng.normal(size=(n, 3))
    return lfilter([1.0], [1.0, -keep], noise, axis=0)


def nernst_einstein(n, charge, diffusion):
    """σ = N q² D/(V kT), S/m, in SI units from the start; D in Å²/fs."""
    volume, energy = VOLUME * 1e-30, 1.380649e-23 * TEMPERATURE
    return n * (charge * E) ** 2 * diffusion * 1e-20 / 1e-15 / (volume * energy)


def test_independent_charges_conduct_as_nernst_and_einstein_say():
    """Both ways, from current and from dipole; errors are how much runs differ."""
    rng = np.random.default_rng(0)
    friction, timestep, n, charge = 0.02, 4.0, 12, 2.0
    diffusion = BOLTZMANN * TEMPERATURE / (20.0 * AMU * friction)
    expected = nernst_einstein(n, charge, diffusion)
    found = []
    for _ in range(20):
        velocity = brownian(16000, timestep, friction, rng, n)
        signs = charge * (-1.0) ** np.arange(n)
        current = np.einsum("tna,n->ta", velocity, signs)
        found.append(conductivity(VOLUME, TEMPERATURE, timestep, current=current, lag=400.0))
    for way in ("green_kubo", "einstein"):
        values = np.array([getattr(f, way) for f in found])
        errors = np.array([getattr(f, f"{way}_error") for f in found])
        spread = values.std(ddof=1)
        # Sums over frames instead of integrals: (γΔt)²/12 too much.
        assert values.mean() == pytest.approx(
            expected, rel=(friction * timestep) ** 2 / 10, abs=3.5 * spread / np.sqrt(20)
        )
        assert spread < 0.1 * expected
        assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.35)
    assert sum(f.has_plateau for f in found) >= 19  # one in some hundred by chance
    for f in found:  # one is the integral of the other
        assert f.green_kubo == pytest.approx(f.einstein, abs=0.5 * f.einstein_error)
    # The running integral is σ (1 − e^{−γt}), and the correlation N q² 3kT/m e^{−γt}.
    lags = found[0].lags
    mean = np.mean([f.running for f in found], axis=0)
    np.testing.assert_allclose(
        mean, expected * (1 - np.exp(-friction * lags)), atol=0.08 * expected
    )
    start = np.mean([f.correlation[0] for f in found])
    thermal = n * charge**2 * 3 * BOLTZMANN * TEMPERATURE / (20.0 * AMU)
    assert start == pytest.approx(thermal, rel=0.02)


def test_current_and_dipole_give_the_same():
    """Also where frames are too far apart for the current."""
    rng = np.random.default_rng(1)
    velocity = brownian(40000, 2.0, 0.02, rng, 4)
    current = np.einsum("tna,n->ta", velocity, [1.0, -1.0, 1.0, -1.0])
    moment = np.cumsum(current, axis=0) * 2.0
    fine = conductivity(VOLUME, TEMPERATURE, 2.0, current=current, lag=4000.0)
    coarse = conductivity(VOLUME, TEMPERATURE, 100.0, moment=moment[::50], lag=4000.0)
    assert coarse.einstein == pytest.approx(fine.einstein, abs=0.5 * fine.einstein_error)
    assert coarse.green_kubo == pytest.approx(coarse.einstein, rel=0.05)


def test_bound_charges_do_not_conduct():
    """Vibrations about sites and charges that follow them: zero within the error, and small."""
    rng = np.random.default_rng(2)
    keep = np.exp(-4.0 / 100.0)
    moment = lfilter([1.0], [1.0, -keep], rng.normal(size=(20000, 3)), axis=0)
    free = lfilter([1.0], [1.0, -1.0], rng.normal(size=(20000, 3)), axis=0)
    bound = conductivity(VOLUME, TEMPERATURE, 4.0, moment=moment)
    other = conductivity(VOLUME, TEMPERATURE, 4.0, moment=free)
    assert abs(bound.einstein) < 3.5 * bound.einstein_error
    assert bound.einstein_error < 0.01 * other.einstein


def test_a_slope_that_still_changes_is_noticed():
    """Velocities that last for longer than the lags: M moves on straight lines."""
    rng = np.random.default_rng(3)
    current = np.einsum("tna->ta", brownian(20000, 4.0, 0.0002, rng, 3))
    short = conductivity(VOLUME, TEMPERATURE, 4.0, current=current, lag=1000.0)
    assert not short.has_plateau and short.change > 0


def test_refusals():
    current = np.random.default_rng(0).normal(size=(400, 3))

    def refused(message, volume=VOLUME, temperature=TEMPERATURE, timestep=4.0, **more):
        with pytest.raises(InputError, match=message):
            conductivity(volume, temperature, timestep, **{"current": current, **more})

    refused("150 frames, at least 200 are needed", current=current[:150])
    refused("needs a current or a dipole", current=None)
    refused("volume must be a positive number", volume=0.0)
    refused("temperature must be a positive number", temperature=np.nan)
    refused("400 frames is too short for lags up to 0.4 ps, 100 frames: at least 700", lag=400.0)
    refused("701 frames are needed, 2.8 ps", current=None, moment=current, lag=400.0)
    refused("has 3 frames, at least 8 are needed", lag=12.0)
    refused("the longest lag must be a positive", lag=-1.0)


def test_the_shortest_run_is_the_one_that_the_message_names():
    """Seven times the lag; with the dipole, whose changes are the current, a frame more."""
    values = np.random.default_rng(0).normal(size=(701, 3)).cumsum(0)
    for name, needed in (("current", 700), ("moment", 701)):
        conductivity(VOLUME, TEMPERATURE, 4.0, lag=400.0, **{name: values[:needed]})
        with pytest.raises(InputError, match=f"{needed - 1} frames .* at least {needed} frames"):
            conductivity(VOLUME, TEMPERATURE, 4.0, lag=400.0, **{name: values[: needed - 1]})
        conductivity(VOLUME, TEMPERATURE, 4.0, **{name: values[: needed - 500]})
        with pytest.raises(InputError, match=f"{needed - 501} frames, at least {needed - 500} are"):
            conductivity(VOLUME, TEMPERATURE, 4.0, **{name: values[: needed - 501]})
