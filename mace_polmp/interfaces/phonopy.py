"""Phonons of a crystal with phonopy, and the field of longitudinal ones from the same model.

Force constants come from displaced atoms in a supercell. The forces of the model have the
interaction of all periodic images in them. In a supercell that interaction is cut where images of
the displaced atom begin, so it is taken off, and put back for each wave vector: the method of Gonze
and Lee, Phys. Rev. B 55, 10355 (1997). It needs the model's Born charges and ε∞ alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mace_polmp.errors import InputError
from mace_polmp.units import COULOMB_CONSTANT

if TYPE_CHECKING:
    from phonopy import Phonopy

Array = NDArray[np.float64]

METHODS = ("gonze", "wang", "none")
"""How the field of longitudinal vibrations gets into what is between the wave vectors of the
supercell: by the interaction of dipoles (Gonze and Lee), by a constant for each pair (Wang et al.,
J. Phys.: Condens. Matter 22, 202201 (2010)), or not at all."""

SYMMETRY = 1e-4
"""Å; how far atoms may be from where the symmetry has them."""

_SPACING = 0.02  # 1/Å, between wave vectors of a band
_NAMES = {"G": "Γ"}


def phonopy_class() -> Any:
    """The class Phonopy.

    Raises:
        InputError: phonopy is not installed.
    """
    try:
        from phonopy import Phonopy
    except ImportError as error:
        raise InputError(
            f"phonons need the package phonopy ({error}): pip install 'mace-polmp[phonons]' (or "
            "pip install phonopy)"
        ) from error
    return Phonopy


def displaced(atoms: Atoms, repeats: tuple[int, int, int], distance: float) -> Phonopy:
    """A phonopy object with displaced supercells.

    Args:
        atoms: the cell, periodic in three directions.
        repeats: of the cell in the supercell.
        distance: by which atoms are displaced, Å.
    """
    phonopy = phonopy_class()
    from phonopy.structure.atoms import PhonopyAtoms
    from phonopy.structure.cells import guess_primitive_matrix

    order = [0, 1, 2] if atoms.cell.handedness > 0 else [1, 0, 2]  # phonopy: right-handed cells
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        masses=atoms.get_masses(),
        scaled_positions=atoms.get_scaled_positions()[:, order],
        cell=atoms.cell.array[order],
    )
    primitive = guess_primitive_matrix(cell, symprec=SYMMETRY)
    with warnings.catch_warnings():  # a supercell may have less symmetry than the cell
        warnings.filterwarnings("ignore", message=".*Point group symmetries")
        found: Phonopy = phonopy(
            cell,
            np.diag([repeats[axis] for axis in order]),
            primitive_matrix=primitive,
            symprec=SYMMETRY,
        )
    found.generate_displacements(distance=distance)
    return found


def supercells(phonons: Phonopy) -> list[Atoms]:
    """The supercell itself and those with displaced atoms."""
    every = [phonons.supercell, *(phonons.supercells_with_displacements or [])]
    return [
        Atoms(
            numbers=cell.numbers,
            positions=cell.positions,
            masses=cell.masses,
            cell=cell.cell,
            pbc=True,
        )
        for cell in every
    ]


def set_forces(phonons: Phonopy, forces: list[Array]) -> None:
    """Symmetric force constants from forces.

    Args:
        phonons: of displaced().
        forces: of supercells(), each [n_atoms, 3], eV/Å. Those of the supercell itself, which a
            structure that is not quite relaxed has, are taken off.
    """
    first, *others = forces
    phonons.forces = np.array(others) - first
    phonons.produce_force_constants(show_drift=False)
    phonons.symmetrize_force_constants(show_drift=False)


def set_charges(phonons: Phonopy, born_charges: Array, permittivity: Array, method: str) -> None:
    """Let longitudinal vibrations have their field.

    Args:
        phonons: with force constants.
        born_charges: of the atoms of the cell, [n_atoms, polarization, displacement], e.
        permittivity: ε∞, [3, 3].
        method: of METHODS.
    """
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    if method == "none":
        return
    born, epsilon = symmetrize_borns_and_epsilon(
        born_charges - born_charges.mean(0),  # a translation must not make a field
        permittivity,
        phonons.unitcell,
        primitive=phonons.primitive,
        supercell_matrix=phonons.supercell_matrix,
        symprec=SYMMETRY,
    )
    parameters: Any = {
        "born": born,
        "dielectric": epsilon,
        "factor": COULOMB_CONSTANT,
        "method": method,
    }
    phonons.nac_params = parameters


def at_gamma(phonons: Phonopy, direction: Array | None = None) -> Array:
    """Frequencies at Γ, or in the limit along a Cartesian direction, [3 n_primitive], THz."""
    toward = None if direction is None else phonons.primitive.cell @ np.asarray(direction)
    found = phonons.run_qpoints([[0.0, 0.0, 0.0]], nac_q_direction=toward)
    frequencies: Array = np.array(found.frequencies[0])
    return frequencies


@dataclass(frozen=True)
class Path:
    """Lines between special points.

    Attributes:
        segments: wave vectors in units of the reciprocal vectors of the primitive cell, each
            [n, 3].
        ends: names of both ends of each segment.
    """

    segments: list[Array]
    ends: list[tuple[str, str]]

    @property
    def connections(self) -> list[bool]:
        """Whether each segment goes on with the next one."""
        following = [*self.ends[1:], ("", "")]
        return [a[1] == b[0] for a, b in zip(self.ends, following, strict=True)]

    @property
    def labels(self) -> list[str]:
        """Names in the order of the path, as phonopy has them."""
        out = []
        for ends, goes_on in zip(self.ends, self.connections, strict=True):
            out += [ends[0]] if goes_on else list(ends)
        return out


def band_path(phonons: Phonopy, names: str | None) -> Path:
    """A path through the Brillouin zone.

    Args:
        phonons: whose primitive cell it is of.
        names: of special points, with a comma where the path is broken, such as "GXW,GL"; None for
            the usual path of the lattice (Setyawan and Curtarolo).

    Raises:
        InputError: a point that the lattice does not have.
    """
    from ase.cell import Cell
    from ase.dft.kpoints import parse_path_string

    cell = Cell(phonons.primitive.cell)
    usual = cell.bandpath(npoints=0, eps=1e-3)
    points = usual.special_points
    chosen = usual.path if names is None else names
    chains = [chain for chain in parse_path_string(chosen) if chain]
    for point in (point for chain in chains for point in chain):
        if point not in points:
            raise InputError(
                f"path {chosen!r}: there is no point {point}; this lattice has "
                f"{' '.join(sorted(points))}, and its usual path is {usual.path}"
            )
    if not chains or any(len(chain) < 2 for chain in chains):
        raise InputError(f"path {chosen!r}: give two points or more, such as GX, in each part")
    reciprocal = 2.0 * np.pi * cell.reciprocal().array
    segments, ends = [], []
    for chain in chains:
        for a, b in zip(chain[:-1], chain[1:], strict=True):
            first, last = np.asarray(points[a]), np.asarray(points[b])
            length = float(np.linalg.norm((last - first) @ reciprocal))
            share = np.linspace(0.0, 1.0, max(int(length / _SPACING), 1) + 1)[:, None]
            segments.append(first + share * (last - first))
            ends.append((_NAMES.get(a, a), _NAMES.get(b, b)))
    return Path(segments, ends)


def run_bands(phonons: Phonopy, path: Path) -> list[tuple[Array, Array]]:
    """Distances [n], 1/Å without 2π, and frequencies [n, 3 n_primitive], THz, of each segment.

    At Γ longitudinal vibrations have the field of their segment's direction.
    """
    found = phonons.run_band_structure(
        path.segments, path_connections=path.connections, labels=path.labels
    )
    return list(zip(found.distances, found.frequencies, strict=True))


def density_of_states(phonons: Phonopy, mesh: tuple[int, int, int]) -> tuple[Array, Array]:
    """Frequencies, THz, and the density of states, 1/THz of the primitive cell, each [n].

    Args:
        phonons: with force constants.
        mesh: of wave vectors, about Γ.
    """
    phonons.run_mesh(mesh, is_gamma_center=True)
    found = phonons.run_total_dos()
    return np.asarray(found.frequency_points), np.asarray(found.dos)
