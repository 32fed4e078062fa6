"""Loops of polarization against a field that goes back and forth, folded into one period."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError

_FEWEST = 20
"""Frames in a period."""

_MOST = 200
"""Points of a loop."""

_ROUNDING = 1e-6
"""Of times in units of the period, and of directions of the field."""


@dataclass(frozen=True)
class Value:
    """A number and its standard error, NaN where it is not known."""

    value: float
    error: float


@dataclass(frozen=True)
class Loop:
    """A loop, mean over periods.

    Attributes:
        direction: along which field and polarization are, [3], of length 1.
        field: in the order of time, [n], V/Å.
        polarization: [n], e/Å².
        error: standard error of the polarization, [n], e/Å²; NaN of one period.
        remanent: half of the difference between both branches at zero field, e/Å².
        coercive: half of the distance between the fields at which the polarization goes through
            zero, V/Å; NaN where it does not.
        area: ∮ F dP, the heat per volume and period, eV/Å³.
        centre: the middle between the polarizations at both ends of the field, e/Å².
        periods: numbers of the periods that were averaged, counted from 1 at time zero.
        n_periods: whole periods that the run has.
        all_periods: polarization of each of them, [n_periods, n], e/Å².
    """

    direction: Array
    field: Array
    polarization: Array
    error: Array
    remanent: Value
    coercive: Value
    area: Value
    centre: float
    periods: tuple[int, ...]
    n_periods: int
    all_periods: Array


def hysteresis_loop(
    times: Array,
    field: Array,
    polarization: Array,
    period: float,
    is_settled: bool = False,
    centred: bool = False,
) -> Loop:
    """The loop of a run in a field that repeats itself.

    Standard errors are those of a jackknife over the periods.

    Args:
        times: of the frames, evenly spaced, [n_times], fs; periods are counted from time zero.
        field: along one direction, [n_times, 3], V/Å.
        polarization: [n_times, 3], e/Å².
        period: fs.
        is_settled: whether the first period counts as well where there are more.
        centred: whether to take the middle of the loop off the polarization.

    Raises:
        InputError: no field, one that turns, less than one whole period, or too few frames in it.
    """
    if not (math.isfinite(period) and period > 0):
        raise InputError(f"the period must be a positive number of fs, got {period}")
    direction = _direction(field)
    along, projected = field @ direction, polarization @ direction
    step = float(times[1] - times[0])
    if period < (_FEWEST - _ROUNDING) * step:
        raise InputError(
            f"frames are {step:g} fs apart, and a period of {period:g} fs needs at least {_FEWEST} "
            "of them; write frames more often"
        )
    n_points = min(int(period / step + _ROUNDING), _MOST)
    numbers, fields, loops = _folded(times / period, along, projected, n_points)
    if len(numbers) == 0:
        raise InputError(
            f"the run from {times[0] / 1000:g} to {times[-1] / 1000:g} ps has no whole period of "
            f"{period / 1000:g} ps; run longer"
        )
    used = slice(1, None) if len(numbers) > 1 and not is_settled else slice(None)
    centre = _centre(fields, loops[used].mean(0))
    if centred:
        loops = loops - centre
    mean, count = loops[used].mean(0), len(loops[used])
    error = np.full(n_points, math.nan)
    if count > 1:
        error = loops[used].std(0, ddof=1) / math.sqrt(count)
    return Loop(
        direction,
        fields,
        mean,
        error,
        *(_jackknife(what, fields, loops[used]) for what in (_remanent, _coercive, loop_area)),
        centre,
        tuple(int(number) + 1 for number in numbers[used]),
        len(numbers),
        loops,
    )


def loop_area(field: Array, polarization: Array) -> float:
    """∮ F dP of a closed loop, eV/Å³, positive where the structure takes up heat."""
    following_field, following = np.roll(field, -1), np.roll(polarization, -1)
    return float((0.5 * (field + following_field) * (following - polarization)).sum())


def _direction(field: Array) -> Array:
    """Along which a field goes back and forth, [3]; the first component that counts is positive."""
    lengths = np.linalg.norm(field, axis=1)
    largest = float(lengths.max())
    if not (math.isfinite(largest) and largest > 0):
        raise InputError("there is no field in the run; hysteresis needs one that changes")
    direction: Array = field[int(lengths.argmax())] / largest
    across = np.abs(field - np.outer(field @ direction, direction)).max()
    if across > _ROUNDING * largest:
        raise InputError(
            "the field turns during the run; hysteresis needs one that goes back and forth along "
            "one direction"
        )
    along = field @ direction
    if along.max() < 0.5 * largest or along.min() > -0.5 * largest:
        raise InputError(
            f"the field goes from {along.min():.3g} to {along.max():.3g} V/Å; hysteresis needs one "
            "that goes back and forth through zero"
        )
    first = direction[np.abs(direction) > _ROUNDING][0]
    return -direction if first < 0 else direction


def _folded(
    phases: Array, field: Array, polarization: Array, n_points: int
) -> tuple[Array, Array, Array]:
    """Whole periods: their numbers, the field [n_points] and polarizations [n, n_points]."""
    number = np.floor(phases + _ROUNDING / n_points).astype(int)
    point = ((phases - number) * n_points + _ROUNDING).astype(int).clip(0, n_points - 1)
    kept, fields, loops = [], [], []
    for each in np.unique(number):
        inside = number == each
        counts = np.bincount(point[inside], minlength=n_points)
        if (counts == 0).any():
            continue
        kept.append(each)
        fields.append(np.bincount(point[inside], field[inside], n_points) / counts)
        loops.append(np.bincount(point[inside], polarization[inside], n_points) / counts)
    return np.array(kept), np.mean(fields, axis=0) if kept else np.zeros(0), np.array(loops)


def _branches(field: Array, values: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Field and values of the rising and of the falling branch, in the order of time."""
    low, high = int(field.argmin()), int(field.argmax())
    n = len(field)
    rising = np.arange(low, low + (high - low) % n + 1) % n
    falling = np.arange(high, high + (low - high) % n + 1) % n
    return (field[rising], values[rising]), (field[falling], values[falling])


def _centre(field: Array, polarization: Array) -> float:
    return 0.5 * float(polarization[field.argmax()] + polarization[field.argmin()])


def _remanent(field: Array, polarization: Array) -> float:
    """Half of the difference of the branches at zero field."""
    (up, rising), (down, falling) = _branches(field, polarization)
    return 0.5 * float(np.interp(0.0, down[::-1], falling[::-1]) - np.interp(0.0, up, rising))


def _coercive(field: Array, polarization: Array) -> float:
    """Half of the distance of the fields where the branches go through zero; NaN for none."""
    ends = [_zero(*branch) for branch in _branches(field, polarization)]
    return 0.5 * (ends[0] - ends[1])


def _zero(field: Array, values: Array) -> float:
    """The field at which values go through zero, the mean of several where noise makes them."""
    at = np.flatnonzero((values[:-1] < 0) != (values[1:] < 0))
    if len(at) == 0:
        return math.nan
    share = values[at] / (values[at] - values[at + 1])
    return float((field[at] + share * (field[at + 1] - field[at])).mean())


def _jackknife(what: Callable[[Array, Array], float], field: Array, loops: Array) -> Value:
    """What the mean loop has, and how much it depends on single periods."""
    value, n = what(field, loops.mean(0)), len(loops)
    if n < 2:
        return Value(value, math.nan)
    others = [what(field, np.delete(loops, k, axis=0).mean(0)) for k in range(n)]
    return Value(value, math.sqrt((n - 1) * float(np.var(others))))
