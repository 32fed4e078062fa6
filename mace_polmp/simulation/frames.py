"""What a frame of a trajectory holds: the structure, whole, and its observables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from mace_polmp.calculators.checks import has_formal_charges
from mace_polmp.calculators.fields import permittivities
from mace_polmp.simulation.fields import PeriodicField
from mace_polmp.simulation.temperature import INFO, RESTS, ThermalMotion

if TYPE_CHECKING:
    from mace_polmp.calculators import MultipoleMACECalculator

OBSERVABLES = ("dipole", "current", "polarizability", "charges", "atomic_dipoles")

# Names in info that say what the structure is, besides texts and the total charge; numbers under
# other names are labels of the start, which are wrong of what comes later.
_KEPT = ("charge", "total_charge", "spin", "total_spin", "head")
_ARRAYS = ("positions", "momenta", "masses", "initial_magmoms", "initial_charges")


def bare(atoms: Atoms, charge_keys: list[str]) -> Atoms:
    """A copy without what was computed or labelled, such as a reference energy of the start.

    Masses, tags, magnetic moments, constraints, velocities, boundary conditions, texts and whole
    numbers of atoms, and numbers that say what the structure is (total charge, spin, head) stay.

    Args:
        atoms: the structure.
        charge_keys: names of the total charge.
    """
    out: Atoms = atoms.copy()
    out.calc = None
    kept = {*_KEPT, *charge_keys}
    out.info = {k: v for k, v in out.info.items() if isinstance(v, str) or k in kept}
    for name in [*out.arrays]:
        if name not in _ARRAYS and out.arrays[name].dtype.kind not in "iubU":
            del out.arrays[name]
    return out


def make_frame(
    atoms: Atoms,
    calculator: MultipoleMACECalculator,
    motion: ThermalMotion,
    observables: tuple[str, ...],
    timestep: float,
    step: int,
    work: float | None = None,
) -> tuple[Atoms, dict[str, Any]]:
    """The structure with its observables, and a row of the table.

    Args:
        atoms: of the run, with forces.
        calculator: of the run.
        motion: what is thermal.
        observables: of OBSERVABLES.
        timestep: fs.
        step: number of steps made.
        work: of a field that depends on time, eV.
    """
    forces = atoms.get_forces(apply_constraint=False)
    results = calculator.results
    time = step * timestep
    field = calculator.field_at(time)
    potential = results.get("energy", results["zero_field_energy"])
    kinetic = atoms.get_kinetic_energy()
    row: dict[str, Any] = {
        "step": step,
        "time_fs": time,
        "potential_eV": potential,
        "kinetic_eV": kinetic,
        "total_eV": potential + kinetic,
        "temperature_K": motion.temperature(atoms),
    }
    if atoms.pbc.all():
        row["volume_A3"] = atoms.get_volume()
    info: dict[str, Any] = {
        "time_fs": time,
        "timestep_fs": timestep,
        "temperature_K": row["temperature_K"],
        INFO: motion.count,
        RESTS: motion.said(),
    }
    if atoms.pbc.all():  # what makes physical charges of latent ones
        info["epsilon_infinity"] = calculator.permittivity()
        info["divided_by_chi"] = calculator.divide_by_chi
        info["formal_charges"] = has_formal_charges(calculator.models)
        each = permittivities(calculator)
        if np.ptp(each) > 0:  # of a committee: what is written is a mean of several screenings
            info["epsilon_infinity_of_models"] = each
    if atoms.pbc.any():  # whether the dipole is that of the polarization
        info["defines_polarization"] = calculator.defines_polarization
    if calculator.has_field:
        info["external_field"] = field
    if calculator.displacement_field is not None:
        info["displacement_field"] = calculator.displacement_field
    if isinstance(calculator.external_field, PeriodicField):
        info["field_period_fs"] = calculator.external_field.period
    for name, value in _observables(atoms, calculator, observables).items():
        info[name] = value.reshape(-1)  # nine plain numbers of a tensor
        row.update(_columns(name, value))
    row.update(_columns("field_V_per_A", field) if "external_field" in info else {})
    if work is not None:
        row["work_eV"] = work
    frame = bare(atoms, calculator.charge_keys())
    frame.info.update(info)
    known = {"energy": results["energy"]} if "energy" in results else {}
    if "charges" in observables:
        known["charges"] = np.array(results["charges"], dtype=float)
        row.update(_mean_charges(atoms, known["charges"]))
    if "atomic_dipoles" in observables:
        frame.set_array("atomic_dipoles", np.array(results["atomic_dipoles"], dtype=float))
    frame.calc = SinglePointCalculator(frame, forces=forces, **known)
    return frame, row


def _observables(
    atoms: Atoms, calculator: MultipoleMACECalculator, wanted: tuple[str, ...]
) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    if "dipole" in wanted:
        values["dipole"] = inner_dipole(atoms, calculator.results)
    if "current" in wanted:
        born = calculator.get_property("born_charges", atoms)
        values["current"] = np.einsum("nab,nb->a", born, atoms.get_velocities() * units.fs)
    if "polarizability" in wanted:
        values["polarizability"] = calculator.get_property("electronic_polarizability", atoms)
    return values


def _mean_charges(atoms: Atoms, charges: np.ndarray) -> dict[str, float]:
    """Columns of the mean charge of each element."""
    symbols = np.array(atoms.get_chemical_symbols())
    return {f"charge_{s}": float(charges[symbols == s].mean()) for s in dict.fromkeys(symbols)}


def inner_dipole(atoms: Atoms, results: dict[str, Any]) -> np.ndarray:
    """The dipole of a structure, of an open one about its centre of mass, [3], e Å.

    Latent charges that nothing constrains sum to a number that fluctuates. Far from the origin of
    the coordinates that would be a large dipole.

    Args:
        atoms: the structure.
        results: of the calculator, with dipole and charges.
    """
    dipole: np.ndarray = np.asarray(results["dipole"], dtype=float)
    if atoms.pbc.any():
        return dipole
    total = float(np.asarray(results["charges"], dtype=float).sum())
    return dipole - total * atoms.get_center_of_mass()


def _columns(name: str, value: np.ndarray) -> dict[str, float]:
    """Columns of a vector or a symmetric tensor."""
    if value.ndim == 1:
        return {f"{name}_{axis}": float(x) for axis, x in zip("xyz", value, strict=True)}
    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    return {f"{name}_{'xyz'[a]}{'xyz'[b]}": float(value[a, b]) for a, b in pairs}
