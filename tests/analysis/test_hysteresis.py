"""Loops whose remanence, coercive field and area are known."""

import numpy as np
import pytest

from mace_polmp.analysis.hysteresis import hysteresis_loop
from mace_polmp.errors import InputError
from mace_polmp.simulation.fields import PeriodicField

LARGEST, PERIOD, STEP = 0.02, 1000.0, 2.0  # V/Å, fs, fs
Z = np.array([0.0, 0.0, 1.0])


def run(n_periods, shape="triangle", amplitude=(0.0, 0.0, LARGEST)):
    field = PeriodicField(amplitude, shape, PERIOD)
    times = np.arange(int(n_periods * PERIOD / STEP) + 1) * STEP
    return times, np.array([field(t) for t in times])


def lagging(times, lag, susceptibility=3.0):
    """P = χ F sin(ωt − δ) along z, of a dielectric with a loss."""
    wave = np.sin(2.0 * np.pi * times / PERIOD - lag)
    return np.outer(susceptibility * LARGEST * wave, Z)


def test_a_dielectric_with_a_loss_makes_an_ellipse():
    """Of area π χ F² sin δ, that cuts the axes at χ F sin δ and F sin δ."""
    times, field = run(3, "sine")
    loop = hysteresis_loop(times, field, lagging(times, 0.3), PERIOD)
    assert loop.remanent.value == pytest.approx(3.0 * LARGEST * np.sin(0.3), rel=1e-3)
    assert loop.coercive.value == pytest.approx(LARGEST * np.sin(0.3), rel=1e-3)
    assert loop.area.value == pytest.approx(3.0 * LARGEST**2 * np.pi * np.sin(0.3), rel=1e-3)
    assert loop.periods == (2, 3) and loop.n_periods == 3
    np.testing.assert_allclose(loop.error, 0.0, atol=1e-12)  # all periods are the same
    without = hysteresis_loop(times, field, lagging(times, 0.0), PERIOD)
    assert abs(without.area.value) < 1e-9 * 3.0 * LARGEST**2
    assert abs(without.remanent.value) < 1e-12


def ferroelectric(field, coercive=0.00805, saturation=0.02):
    """A square loop: the polarization follows the last field beyond the coercive one."""
    state, out = 1.0, []
    for value in field[:, 2]:
        state = 1.0 if value > coercive else -1.0 if value < -coercive else state
        out.append(saturation * state)
    return np.outer(out, Z)


def test_a_square_loop_with_noise():
    """P_r = P_s, E_c where it switches, area 4 E_c P_s; errors are how much runs differ."""
    rng = np.random.default_rng(0)
    times, field = run(6)
    found = []
    for _ in range(30):
        noise = 0.002 * rng.normal(size=(len(times), 3))
        found.append(hysteresis_loop(times, field, ferroelectric(field) + noise, PERIOD))
    point = 4.0 * LARGEST / 200  # the change of the field between points of the loop
    for name, expected, rounding in (
        ("remanent", 0.02, 0.0),
        ("coercive", 0.00805, point),
        ("area", 4 * 0.00805 * 0.02, 4 * point * 0.02),
    ):
        values = np.array([getattr(loop, name).value for loop in found])
        errors = np.array([getattr(loop, name).error for loop in found])
        spread = values.std(ddof=1)
        assert values.mean() == pytest.approx(expected, abs=4 * spread / np.sqrt(30) + rounding)
        if name != "coercive":  # which the points of the loop make a step of
            assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.4)
    scatter = np.sqrt(np.mean([(loop.error**2).mean() for loop in found]))
    frames = PERIOD / STEP / 200
    assert scatter == pytest.approx(0.002 / np.sqrt(5 * frames), rel=0.1)  # of five periods


def test_direction_and_sign_of_the_field_do_not_matter():
    """Along a diagonal, and one that goes down first."""
    times, field = run(2)
    straight = hysteresis_loop(times, field, ferroelectric(field), PERIOD)
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    for sign in (1, -1):
        turned = hysteresis_loop(
            times,
            sign * np.outer(field[:, 2], axis),
            np.outer(ferroelectric(sign * field)[:, 2], axis) + 0.5 * np.cross(axis, Z),
            PERIOD,
        )
        np.testing.assert_allclose(turned.direction, axis)
        assert turned.remanent.value == pytest.approx(straight.remanent.value)
        assert turned.coercive.value == pytest.approx(straight.coercive.value, rel=0.05)


def test_a_constant_is_taken_off_where_asked():
    """Of an ionic crystal the polarization has one that means nothing."""
    times, field = run(2)
    polarization = ferroelectric(field) + 0.3
    loop = hysteresis_loop(times, field, polarization, PERIOD)
    assert np.isnan(loop.coercive.value) and loop.centre == pytest.approx(0.3)
    loop = hysteresis_loop(times, field, polarization, PERIOD, centred=True)
    assert loop.coercive.value == pytest.approx(0.008, abs=0.0004)
    assert loop.polarization.max() == pytest.approx(0.02)


def test_only_whole_periods_count():
    """Also where the run begins within one and ends within another."""
    times, field = run(3.6)
    polarization = ferroelectric(field)
    late = slice(200, None)  # from 0.4 periods on
    loop = hysteresis_loop(times[late], field[late], polarization[late], PERIOD, is_settled=True)
    assert loop.periods == (2, 3) and loop.n_periods == 2
    assert len(loop.field) == 200


def test_refusals():
    times, field = run(1)
    polarization = ferroelectric(field)

    def refused(message, times=times, field=field, period=PERIOD):
        with pytest.raises(InputError, match=message):
            hysteresis_loop(times, field, polarization[: len(times)], period)

    refused("there is no field in the run", field=0.0 * field)
    refused("goes back and forth through zero", field=np.abs(field))
    turning = field + LARGEST * np.outer(np.cos(2 * np.pi * times / PERIOD), [1.0, 0, 0])
    refused("the field turns during the run", field=turning)
    refused("has no whole period of 1 ps", times=times[:400], field=field[:400])
    refused("needs at least 20 of them", period=30.0)
    refused("the period must be a positive number", period=-1.0)
