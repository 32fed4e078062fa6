"""Molecular dynamics with LAMMPS, on one process or many.

    from mpi4py import MPI
    from lammps import lammps
    from mace_polmp.interfaces.lammps import attach

    lmp = lammps(comm=MPI.COMM_WORLD)
    lmp.file("in.water")                      # units metal, boundary, atoms, masses; no pair style
    attach(lmp, "water.safetensors", elements=["H", "O"])
    lmp.command("run 1000")

LAMMPS moves the atoms and tells which are where; `fix external` gives it energy, forces and virial.
Every process evaluates the atoms that LAMMPS gave it: see parallel/model.py.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mace_polmp.calculators.checks import check_field, check_neutral, field_vector
from mace_polmp.errors import InputError
from mace_polmp.interfaces.checks import (
    atomic_numbers_of,
    check_attached,
    check_fixes,
    check_masses,
    check_other_terms,
    checked_elements,
    dtype_of,
    everywhere,
    loaded_models,
    own_device,
    say_charge,
)
from mace_polmp.interfaces.lammps_atoms import LammpsAtoms
from mace_polmp.parallel import MPIProcesses, OneProcess, PartResult, SharedModel
from mace_polmp.parallel.processes import Processes, end_all
from mace_polmp.structures import check_structure

CHARGE, DIPOLE, ENERGY = "d_polmp_charge", "d2_polmp_dipole", "d_polmp_energy"
"""Per-atom properties that dumps and computes can name; the dipole has three columns."""

_VARIABLES = ("polmp_long_range", "polmp_dipole_x", "polmp_dipole_y", "polmp_dipole_z")
_DEVIATION = "polmp_deviation"
_SKIN = 1.0  # Å
_CHECK_EVERY = 1000  # steps; and at the start of every run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How LAMMPS is driven.

    Attributes:
        elements: symbol of each atom type, in the order of the types.
        device: "cpu" or "cuda"; with several GPUs in a machine each process takes one.
        default_dtype: "float32" or "float64".
        total_charge: e, what constrain_charge sums to.
        external_field: [3], V/Å, along directions without periodicity; None for none.
        head: of a model with several.
        fix_id: of the fix that LAMMPS gets.
        energies: whether energies of atoms are computed, as d_polmp_energy and for compute pe/atom.
    """

    elements: Sequence[str]
    device: str = "cpu"
    default_dtype: str = "float64"
    total_charge: float = 0.0
    external_field: Sequence[float] | None = None
    head: str | None = None
    fix_id: str = "polmp"
    energies: bool = False


def attach(
    lmp: Any, model: Any, elements: Sequence[str], processes: Processes | None = None, **more: Any
) -> Driver:
    """Let a LAMMPS that has its atoms take energies and forces from a model.

    It gets a pair style that finds neighbours and nothing else, and a fix whose energy and virial
    count in the thermodynamic output. Per-atom charges and dipoles are the properties
    d_polmp_charge and d2_polmp_dipole[1] to [3], with energies=True also d_polmp_energy, which
    compute pe/atom then knows as well; the variables v_polmp_long_range (eV),
    v_polmp_dipole_x, _y, _z (e Å) and, of a committee, v_polmp_deviation (largest deviation of a
    force, eV/Å) can be printed with thermo_style.

    Args:
        lmp: lammps.lammps, with units metal, a box, atoms and masses.
        model: a file, a list of files (a committee: means), or loaded models.
        elements: symbol of each atom type.
        processes: that lmp runs on; None to take its own communicator.
        more: of Settings.

    Returns:
        The driver; keep it as long as LAMMPS runs.

    Raises:
        InputError: what cannot be run: other units, no atoms, types or masses that do not fit the
            elements, elements the model does not know, a structure that it refuses.
    """
    if isinstance(elements, str):
        raise InputError(f"elements must be a list such as ['H', 'O'], got {elements!r}")
    return Driver(lmp, model, Settings(elements=tuple(elements), **more), processes)


class Driver:
    """What LAMMPS calls in every step; see attach.

    Attributes:
        last: results of the last step, by model of the committee.
        deviation: largest deviation of a force from the committee's mean, eV/Å.
    """

    def __init__(
        self, lmp: Any, model: Any, settings: Settings, processes: Processes | None = None
    ) -> None:
        self.lmp, self.settings = lmp, settings
        self.processes = processes or _processes_of(lmp)
        self.last: list[PartResult] = []
        self.deviation = 0.0
        device = own_device(settings.device, self.processes)
        self._checked = False
        self._last_step: int | None = None
        self._shared = everywhere(self.processes, lambda: self._models(model, device))
        check_fixes(lmp, self.processes)
        self._check_whole()
        self._commands()

    def _models(self, model: Any, device: str) -> list[SharedModel]:
        """Models, elements and settings that fit LAMMPS; without a word to other processes."""
        settings = self.settings
        models = [m.to(device, dtype_of(settings.default_dtype)) for m in loaded_models(model)]
        radius: Any = models[0].r_max
        self._cutoff = float(radius)
        numbers = checked_elements(settings.elements, models[0])
        self._check_lammps(numbers)
        species = np.array([atomic_numbers_of(models[0]).index(z) for z in numbers])
        has_field = settings.external_field is not None
        self._atoms = LammpsAtoms(
            self.lmp, self.processes, numbers, species, self._cutoff, not has_field
        )
        if self.processes.rank == 0:
            say_charge(models, settings.total_charge)
            pbc = self._atoms.pbc()
            for sentence in {m.trained_on.unknown_boundary(pbc) for m in models} - {None}:
                logger.warning(sentence)
        shared = None
        if settings.external_field is not None:
            field = field_vector(settings.external_field)
            self._check_field(field, models)
            if settings.energies and field.any():
                raise InputError(
                    "energies of atoms in an external_field are not defined; leave one of them out"
                )
            shared = torch.from_numpy(field)
        return [
            SharedModel(m, self.processes, settings.head, settings.total_charge, shared)
            for m in models
        ]

    def _check_field(self, field: np.ndarray, models: Sequence[Any]) -> None:
        """Refuse a field along a periodic direction.

        Raises:
            InputError: says which boundaries there have to be.
        """
        atoms = Atoms(cell=self._atoms.cell(), pbc=self._atoms.pbc())
        try:
            options = [model.long_range_options for model in models]
            # LAMMPS wraps atoms; formal charges have no energy then that is continuous.
            defined = all(o.defines_polarization and not o.formal_charges for o in options)
            check_field(atoms, field, {"energy"}, defined)
        except InputError as error:
            letters = " ".join("p" if p else "f" for p in atoms.pbc)
            raise InputError(
                f"external_field (--field) {field.tolist()} with boundary {letters}: the energy of "
                "a charge is not defined along a periodic direction. Use boundary f f f, or "
                "boundary p p f and a field along the normal of the slab, or a model with "
                "--charge_readout bond and without formal charges"
            ) from error

    def _check_lammps(self, numbers: np.ndarray) -> None:
        """Refuse what LAMMPS was told, before anything runs."""
        lmp = self.lmp
        units = lmp.extract_global("units")
        if units is not None and units != "metal":
            raise InputError(f"units must be metal (eV, Å, ps), got {units}; say it in the input")
        if lmp.extract_setting("box_exist") != 1 or lmp.get_natoms() < 1:
            raise InputError("LAMMPS has no atoms yet; attach the model after they are made")
        n_types = lmp.extract_setting("ntypes")
        if n_types != len(numbers):
            raise InputError(
                f"elements must name each of LAMMPS' {n_types} atom types, in order, got "
                f"{len(numbers)} ({' '.join(self.settings.elements)})"
            )
        masses = lmp.numpy.extract_atom("mass")
        if masses is not None:
            check_masses(np.array(masses)[1 : n_types + 1], numbers)
        if lmp.extract_setting("tag_enable") == 0:
            raise InputError("atom_modify id no: atoms need their numbers; leave it out")
        if lmp.extract_setting("dimension") == 2:
            raise InputError("dimension 2: the model has three; leave it out")
        if lmp.has_id("fix", self.settings.fix_id):
            raise InputError(f"LAMMPS has a fix {self.settings.fix_id} already; attach once")
        check_other_terms(lmp, pair_style=None)

    def _check_whole(self) -> None:
        """Refuse the structure as the calculator would, on the first process."""
        whole, engine = self._atoms.gathered(), self._shared[0].model.electrostatics

        def check() -> None:
            if self.processes.rank > 0:
                return
            try:
                check_structure(whole, "the structure in LAMMPS", None, engine)
            except ValueError as error:
                if whole.pbc.sum() != 2:
                    raise
                raise InputError(
                    f"{error}. In LAMMPS a slab has boundary p p f and a box with that height; a "
                    "boundary p p s leaves no vacuum"
                ) from error
            models = [shared.model for shared in self._shared]
            check_neutral(models, whole, "the structure in LAMMPS")

        everywhere(self.processes, check)

    def _commands(self) -> None:
        """Neighbours, per-atom properties, variables and the fix."""
        name = self.settings.fix_id
        energy = f" {ENERGY}" if self.settings.energies else ""
        lines = [
            f"pair_style zero {self._cutoff:.10g} nocoeff",
            "pair_coeff * *",
            f"neighbor {_SKIN} bin",
            "neigh_modify every 1 delay 0 check yes",
            f"fix {name}_atoms all property/atom {CHARGE} {DIPOLE} 3{energy}",
            *(f"variable {v} internal 0.0" for v in (*_VARIABLES, _DEVIATION)),
            f"fix {name} all external pf/callback 1 1",
            f"fix_modify {name} energy yes virial yes",
        ]
        for line in lines:
            self.lmp.command(line)
        self.lmp.set_fix_external_callback(name, self._step, self)

    @staticmethod
    def _step(self: Driver, step: int, n_own: int, tags: Any, x: Any, forces: Any) -> None:
        """What LAMMPS calls; an error on one process ends all of them."""
        try:
            if self._last_step is None or step != self._last_step + 1 or step % _CHECK_EVERY == 0:
                self._checked = False
            self._last_step = step
            forces[:n_own] = self.evaluate(n_own)
        except BaseException as error:  # an interrupt as well: LAMMPS would go on
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if isinstance(error, InputError | ValueError):
            print(f"mace_polmp, process {self.processes.rank}: error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        if isinstance(self.processes, MPIProcesses):
            end_all(self.processes.comm)
        os._exit(1)

    def check_attached(self) -> None:
        """Refuse results of a LAMMPS that has lost the model, see checks.check_attached."""
        check_attached(self.lmp, self.settings.fix_id)

    def evaluate(self, n_own: int) -> np.ndarray:
        """Forces on own atoms, [n_own, 3], eV/Å; energy and the rest go to LAMMPS.

        Raises:
            InputError: neighbours that LAMMPS did not give.
        """
        part = self._atoms.part(n_own, self._shared[0].device)
        if not self._checked:
            self._atoms.check_neighbours(part.index.shape[1])
            self._checked = True
        found = [shared.evaluate(part, self.settings.energies) for shared in self._shared]
        self.last = found
        forces = torch.stack([result.forces for result in found])
        mean = forces.mean(0)
        if len(found) > 1:
            own = (forces - mean).norm(dim=2).max() if n_own > 0 else torch.zeros(())
            every, _ = self.processes.gather(own.double().view(1))
            self.deviation = float(every.max())
        energy = float(np.mean([result.energy for result in found]))
        virial = torch.stack([result.virial for result in found]).mean(0)
        if not np.isfinite(energy):
            raise InputError("the energy is not a number; look at the last structure")
        self._tell(energy, virial, n_own)
        out: np.ndarray = mean.cpu().numpy()
        return out

    def _tell(self, energy: float, virial: torch.Tensor, n_own: int) -> None:
        """Energy, virial, charges, dipoles and variables."""
        name, lmp = self.settings.fix_id, self.lmp
        w = virial.tolist()
        lmp.fix_external_set_energy_global(name, energy)
        lmp.fix_external_set_virial_global(
            name, [w[0][0], w[1][1], w[2][2], w[0][1], w[0][2], w[1][2]]
        )
        charges = torch.stack([r.charges for r in self.last]).mean(0).cpu().numpy()
        dipoles = torch.stack([r.atomic_dipoles for r in self.last]).mean(0).cpu().numpy()
        if n_own > 0:
            lmp.numpy.extract_atom(CHARGE, nelem=n_own)[:n_own] = charges
            lmp.numpy.extract_atom(DIPOLE, nelem=n_own, dim=3)[:n_own] = dipoles
        if self.settings.energies:
            self._tell_energies(n_own)
        dipole = torch.stack([r.dipole for r in self.last]).mean(0).cpu().numpy()
        movable = torch.stack([r.charges_of_place for r in self.last]).mean(0).cpu().numpy()
        dipole = (dipole + self._atoms.moved(movable)).tolist()
        long_range = float(np.mean([r.long_range_energy for r in self.last]))
        for variable, value in zip(_VARIABLES, (long_range, *dipole), strict=True):
            lmp.set_internal_variable(variable, value)
        lmp.set_internal_variable(_DEVIATION, self.deviation)

    def _tell_energies(self, n_own: int) -> None:
        """Energies of atoms, for d_polmp_energy and compute pe/atom."""
        each = [result.energies for result in self.last]
        energies = np.mean([e.cpu().numpy() for e in each if e is not None], axis=0)
        self.lmp.fix_external_set_energy_peratom(self.settings.fix_id, energies)
        if n_own > 0:
            self.lmp.numpy.extract_atom(ENERGY, nelem=n_own)[:n_own] = energies


def _processes_of(lmp: Any) -> Processes:
    """The processes that a LAMMPS runs on."""
    try:
        comm = lmp.get_mpi_comm()
    except Exception:  # a LAMMPS without mpi4py
        comm = None
    if comm is None:
        if lmp.extract_setting("world_size") > 1:
            raise InputError("several processes need mpi4py: pip install '.[lammps]'")
        return OneProcess()
    return MPIProcesses(comm)
