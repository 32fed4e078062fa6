"""`mace_polmp spectrum hysteresis`: the polarization against a field that goes back and forth."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.analysis.correlation import Array, timestep_of
from mace_polmp.analysis.hysteresis import Loop, Value, hysteresis_loop
from mace_polmp.analysis.tables import text_table, with_error
from mace_polmp.cli.common import named
from mace_polmp.cli.screening import number_of
from mace_polmp.cli.trajectory import (
    as_written,
    check_same,
    check_unused,
    column,
    times_of,
)
from mace_polmp.errors import InputError
from mace_polmp.reading import read_structures
from mace_polmp.unit_names import (
    FIELD,
    HEAT_OF_LOOP,
    LABORATORY_FIELD,
    LABORATORY_POLARIZATION,
    POLARIZATION,
    with_unit,
)
from mace_polmp.units import JOULE_PER_CM3, KV_PER_CM, MICROCOULOMB_PER_CM2

if TYPE_CHECKING:
    from ase import Atoms

_HOW = "run mace_polmp md with --field X Y Z --field_ramp triangle PERIOD"


def write_hysteresis(args: argparse.Namespace, base: Path) -> None:
    """Write the loop as CSV, PNG and SVG, and print what characterizes it.

    Args:
        args: trajectory, timestep, skip, period, centre, epsilon_infinity.
        base: name of the files without ending.

    Raises:
        InputError: frames without a polarization or a field, or less than one period.
    """
    where = str(args.trajectory)
    frames = read_structures(args.trajectory)
    check_same(frames, where)
    times = times_of(frames, args.timestep, where)
    timestep_of(times, where)
    kept = int(np.searchsorted(times - times[0], args.skip - 1e-6))
    frames, times = frames[kept:], times[kept:]
    if len(frames) < 2:
        raise InputError(f"--skip {args.skip:g} leaves out the whole run")
    period = _period(args, frames[0], where)
    polarization, scale = _polarization(args, frames, where)
    field = column(frames, "external_field")
    if field is None:
        raise InputError(f"{where}: frames do not say the field (external_field); {_HOW}")
    loop = hysteresis_loop(
        times, field / scale, polarization, period, is_settled=args.skip > 0, centred=args.centre
    )
    _write_table(loop, base)
    volume = float(np.mean([atoms.get_volume() for atoms in frames]))
    _draw(args, loop, frames[0], period, base)
    print(_said(loop, period, volume))
    print(f"{named(base, '.csv')}, {plots.said(named(base, '.png'))}")


def _period(args: argparse.Namespace, first: Atoms, where: str) -> float:
    """Of the field, fs: what frames say, else --period."""
    if args.period is not None and not (math.isfinite(args.period) and args.period > 0):
        raise InputError(f"--period must be a positive number of ps, got {args.period}")
    if "field_period_fs" not in first.info:
        if args.period is None:
            raise InputError(
                f"{where}: frames do not say the period of a field (field_period_fs); {_HOW}, or "
                "give --period"
            )
        return 1000.0 * float(args.period)
    said = number_of(first, "field_period_fs", 0, where)
    if args.period is not None and abs(said - 1000.0 * args.period) > 1e-6 * said:
        raise InputError(
            f"--period {args.period:g}: the frames of {where} say {said / 1000:g} ps "
            "(field_period_fs); leave the option out"
        )
    return said


def _polarization(args: argparse.Namespace, frames: list[Atoms], where: str) -> tuple[Array, float]:
    """The polarization, [n_times, 3], e/Å², and by what --epsilon_infinity has made it larger."""
    if not frames[0].pbc.all():
        raise InputError(
            f"{where}: a polarization needs a volume: frames that are periodic in three directions"
        )
    # Frames of earlier versions say their permittivity alone, and are of any model.
    known = "epsilon_infinity" not in frames[0].info
    if not bool(frames[0].info.get("defines_polarization", known)):
        raise InputError(
            f"{where}: the dipole of a periodic structure is that of its polarization only with a "
            "model that was trained with --charge_readout bond"
        )
    dipole = column(frames, "dipole")
    if dipole is None:
        raise InputError(
            f"{where}: frames have no 'dipole'; write it with mace_polmp md --observables dipole"
        )
    if args.model is not None:
        raise InputError("--model: hysteresis takes what frames say; leave the option out")
    check_unused(args, "dipole", where)
    moment, epsilon = as_written(args, frames, "dipole", dipole)
    volumes = np.array([atoms.get_volume() for atoms in frames])
    # The field acts on physical charges: larger ones have the same forces in a smaller field.
    written = float(frames[0].info.get("epsilon_infinity", 1.0))
    return moment / volumes[:, None], math.sqrt(epsilon / written)


def _write_table(loop: Loop, base: Path) -> None:
    header = ["field_V/A", "field_kV/cm", "polarization_e/A2", "standard_error_e/A2"]
    header += ["polarization_uC/cm2", "standard_error_uC/cm2"]
    scale = MICROCOULOMB_PER_CM2
    columns = [loop.field, loop.field * KV_PER_CM, loop.polarization, loop.error]
    columns += [scale * loop.polarization, scale * loop.error]
    if len(loop.periods) == 1:  # nothing to compare with
        columns = [c for c, name in zip(columns, header, strict=True) if "error" not in name]
        header = [name for name in header if "error" not in name]
    plots.write_csv(named(base, ".csv"), header, np.column_stack(columns).tolist())


def _said(loop: Loop, period: float, volume: float) -> str:
    """What the command prints: the periods, a table, and a note on what is missing."""
    first, last = loop.periods[0], loop.periods[-1]
    which = f"period {first}" if first == last else f"periods {first} to {last}"
    along = " ".join(f"{x:.4g}" for x in loop.direction)
    out = [
        f"field along {along} up to {loop.field.max() * KV_PER_CM:.4g} {LABORATORY_FIELD}; "
        f"{which} of {loop.n_periods}, {period / 1000:g} ps each"
    ]
    scaled = {
        "remanent polarization": (
            (loop.remanent, MICROCOULOMB_PER_CM2, LABORATORY_POLARIZATION),
            (loop.remanent, 1.0, POLARIZATION),
        ),
        "coercive field": (
            (loop.coercive, KV_PER_CM, LABORATORY_FIELD),
            (loop.coercive, 1.0, FIELD),
        ),
        "area (heat per period)": (
            (loop.area, JOULE_PER_CM3, HEAT_OF_LOOP),
            (loop.area, 1000.0 * volume, "meV per cell"),
        ),
    }
    rows = [
        [name, *(f"{_number(value, factor)} {unit}" for value, factor, unit in both)]
        for name, both in scaled.items()
    ]
    out.append(text_table(["", "usual units", "units of the model"], rows))
    if math.isnan(loop.coercive.value):
        middle = loop.centre * MICROCOULOMB_PER_CM2
        out.append(
            f"note: the polarization does not go through zero on both branches (the middle of the "
            f"loop is at {middle:.3g} {LABORATORY_POLARIZATION}): the field does not switch it, or "
            "a constant has to be taken off (--centre)"
        )
    if len(loop.periods) == 1:
        out.append("note: one period has no error bar; run several")
    return "\n".join(out)


def _number(value: Value, factor: float) -> str:
    return with_error(value.value * factor, value.error * factor)


def _draw(args: argparse.Namespace, loop: Loop, first: Atoms, period: float, base: Path) -> None:
    """The mean loop with its error, over all periods as thin lines."""
    made, (axis,) = plots.figure(size=(6.5, 5.0))
    field = np.append(loop.field, loop.field[0]) * KV_PER_CM

    def closed(values: Array) -> Array:
        return np.append(values, values[0]) * MICROCOULOMB_PER_CM2

    for number, each in enumerate(loop.all_periods):
        label = "single periods" if number == 0 else None
        axis.plot(field[:-1], closed(each)[:-1], color="0.75", lw=0.6, label=label, zorder=1)
    middle, error = closed(loop.polarization), closed(np.nan_to_num(loop.error))
    label = "mean" if len(loop.periods) > 1 else f"period {loop.periods[0]}"
    axis.plot(field, middle, color="C0", lw=1.6, label=label, zorder=3)
    if len(loop.periods) > 1:
        for part in _parts(loop.field):
            axis.fill_between(
                field[part],
                (middle - error)[part],
                (middle + error)[part],
                color="C0",
                alpha=0.25,
                lw=0,
                label="± standard error" if part.start == 0 else None,
            )
    axis.axhline(0.0, color="black", lw=0.6)
    axis.axvline(0.0, color="black", lw=0.6)
    axis.set(
        xlabel=with_unit("field", LABORATORY_FIELD),
        ylabel=with_unit("polarization", LABORATORY_POLARIZATION),
    )
    model = str(first.info.get("model", ""))
    axis.set_title(
        plots.heading(
            "Hysteresis",
            f"model {model}" if model else "",
            f"{plots.names(args.trajectory)} ({plots.typeset(first.get_chemical_formula())})",
            f"period {period / 1000:g} ps",
        ),
        fontsize=10,
    )
    for kind, factor, label in (
        ("x", KV_PER_CM, with_unit("field", FIELD)),
        ("y", MICROCOULOMB_PER_CM2, with_unit("polarization", POLARIZATION)),
    ):
        add = axis.secondary_xaxis if kind == "x" else axis.secondary_yaxis
        place = "top" if kind == "x" else "right"
        add(place, functions=(lambda v, f=factor: v / f, lambda v, f=factor: v * f)).set(
            **{f"{kind}label": label}
        )
    axis.grid(True, alpha=0.25)
    axis.legend(frameon=False)
    plots.save(made, named(base, ".png"))


def _parts(field: Array) -> list[slice]:
    """Stretches of a closed loop over which the field only rises or only falls."""
    high, low = sorted((int(field.argmax()), int(field.argmin())))
    return [slice(0, high + 1), slice(high, low + 1), slice(low, len(field) + 1)]
