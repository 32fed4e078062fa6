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

from mace_polmp.calculators.checks import check_field, field_vector
from mace_polmp.errors import InputError
from mace_polmp.interfaces.checks import (
    atomic_numbers_of,
    check_attached,
    check_fixes,
    check_masses,
    check_other_terms,
    checked_elements,
    decoded,
    dtype_of,
    loaded_models,
    own_device,
    say_charge,
)
from mace_polmp.interfaces.neighbours import count_pairs, neighbours_of
from mace_polmp.modules import MultipoleMACE
from mace_polmp.parallel import Halo, MPIProcesses, OneProcess, Part, PartResult, SharedModel
from mace_polmp.parallel.processes import Processes
from mace_polmp.structures import check_structure

CHARGE, DIPOLE = "d_polmp_charge", "d2_polmp_dipole"
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
    """

    elements: Sequence[str]
    device: str = "cpu"
    default_dtype: str = "float64"
    total_charge: float = 0.0
    external_field: Sequence[float] | None = None
    head: str | None = None
    fix_id: str = "polmp"


def attach(
    lmp: Any, model: Any, elements: Sequence[str], processes: Processes | None = None, **more: Any
) -> Driver:
    """Let a LAMMPS that has its atoms take energies and forces from a model.

    It gets a pair style that finds neighbours and nothing else, and a fix whose energy and virial
    count in the thermodynamic output. Per-atom charges and dipoles are the properties
    d_polmp_charge and d2_polmp_dipole[1] to [3]; the variables v_polmp_long_range (eV),
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
        dtype = dtype_of(settings.default_dtype)
        models = [m.to(device, dtype) for m in loaded_models(model)]
        radius: Any = models[0].r_max
        self._cutoff = float(radius)
        self._numbers = checked_elements(settings.elements, models[0])
        self._species_of_type = np.array(
            [atomic_numbers_of(models[0]).index(z) for z in self._numbers]
        )
        self._check_lammps()
        self._boundary = self._pbc()
        if self.processes.rank == 0:
            say_charge(models, settings.total_charge)
        field = None
        if settings.external_field is not None:
            field = field_vector(settings.external_field)
            check_field(Atoms(cell=self._cell(), pbc=self._pbc()), field, {"energy"})
        shared = None if field is None else torch.from_numpy(field)
        self._shared = [
            SharedModel(m, self.processes, settings.head, settings.total_charge, shared)
            for m in models
        ]
        self._halo: Halo | None = None
        self._tags: tuple[np.ndarray, np.ndarray] | None = None
        self._checked = False
        self._last_step: int | None = None
        self._centre = np.zeros(3)
        self._check_whole(models[0])
        self._commands()

    def _check_lammps(self) -> None:
        """Refuse what LAMMPS was told, before anything runs."""
        lmp = self.lmp
        units = lmp.extract_global("units")
        if units is not None and units != "metal":
            raise InputError(f"units must be metal (eV, Å, ps), got {units}; say it in the input")
        if lmp.extract_setting("box_exist") != 1 or lmp.get_natoms() < 1:
            raise InputError("LAMMPS has no atoms yet; attach the model after they are made")
        n_types = lmp.extract_setting("ntypes")
        if n_types != len(self._numbers):
            raise InputError(
                f"elements must name each of LAMMPS' {n_types} atom types, in order, got "
                f"{len(self._numbers)} ({' '.join(self.settings.elements)})"
            )
        masses = lmp.numpy.extract_atom("mass")
        if masses is not None:
            check_masses(np.array(masses)[1 : n_types + 1], self._numbers)
        if lmp.extract_setting("tag_enable") == 0:
            raise InputError("atom_modify id no: atoms need their numbers; leave it out")
        if lmp.extract_setting("dimension") == 2:
            raise InputError("dimension 2: the model has three; leave it out")
        if lmp.has_id("fix", self.settings.fix_id):
            raise InputError(f"LAMMPS has a fix {self.settings.fix_id} already; attach once")
        check_other_terms(lmp, pair_style=None)
        check_fixes(lmp, self.processes)

    def _check_whole(self, model: MultipoleMACE) -> None:
        """Refuse the structure as the calculator would, on the first process."""
        error = 0
        message = ""
        whole = self._gathered()
        if self.processes.rank == 0:
            try:
                check_structure(whole, "atoms of LAMMPS", None, model.electrostatics)
            except Exception as found:  # the others wait for an answer
                error, message = 1, str(found)
        if int(self.processes.sum(torch.tensor([error]))[0]) > 0:
            raise InputError(message or "atoms of LAMMPS: refused, see the first process")

    def _gathered(self) -> Atoms:
        """The whole structure, on every process, sorted by the numbers of atoms."""
        n = self.lmp.extract_setting("nlocal")
        own = np.zeros((n, 5))
        if n > 0:
            own[:, :3] = self.lmp.numpy.extract_atom("x")[:n]
            own[:, 3] = np.array(self.lmp.numpy.extract_atom("type")[:n]).reshape(-1)
            own[:, 4] = np.array(self.lmp.numpy.extract_atom("id")[:n]).reshape(-1)
        rows, _ = self.processes.gather(torch.from_numpy(own))
        every = rows.numpy()[np.argsort(rows.numpy()[:, 4])]
        numbers = self._numbers[every[:, 3].astype(int) - 1]
        return Atoms(numbers, every[:, :3], cell=self._cell(), pbc=self._pbc())

    def _pbc(self) -> tuple[bool, bool, bool]:
        *_, periodic, _ = self.lmp.extract_box()
        a, b, c = (bool(p) for p in periodic)
        return a, b, c

    def _cell(self) -> np.ndarray:
        low, high, xy, yz, xz, *_ = self.lmp.extract_box()
        x, y, z = (np.array(high) - np.array(low)).tolist()
        return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])

    def _commands(self) -> None:
        """Neighbours, per-atom properties, variables and the fix."""
        name = self.settings.fix_id
        lines = [
            f"pair_style zero {self._cutoff:.10g} nocoeff",
            "pair_coeff * *",
            f"neighbor {_SKIN} bin",
            "neigh_modify every 1 delay 0 check yes",
            f"fix {name}_atoms all property/atom {CHARGE} {DIPOLE} 3",
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
            self.processes.comm.Abort(1)
        os._exit(1)

    def check_attached(self) -> None:
        """Refuse results of a LAMMPS that has lost the model, see checks.check_attached."""
        check_attached(self.lmp, self.settings.fix_id)

    def evaluate(self, n_own: int) -> np.ndarray:
        """Forces on own atoms, [n_own, 3], eV/Å; energy and the rest go to LAMMPS.

        Raises:
            InputError: neighbours that LAMMPS did not give.
        """
        part = self._part(n_own)
        found = [shared.evaluate(part) for shared in self._shared]
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
        dipole = torch.stack([r.dipole for r in self.last]).mean(0).cpu().numpy()
        dipole = (dipole + self._unwrapped(charges, n_own)).tolist()
        long_range = float(np.mean([r.long_range_energy for r in self.last]))
        for variable, value in zip(_VARIABLES, (long_range, *dipole), strict=True):
            lmp.set_internal_variable(variable, value)
        lmp.set_internal_variable(_DEVIATION, self.deviation)

    def _unwrapped(self, charges: np.ndarray, n_own: int) -> np.ndarray:
        """What makes the dipole that of atoms that were never wrapped, where LAMMPS has them."""
        moved = np.zeros(3)
        if n_own > 0:
            images = np.array(self.lmp.numpy.extract_atom("image")[:n_own]).reshape(-1)
            moved = charges @ (decoded(images) @ self._cell() + self._centre)
        out: np.ndarray = self.processes.sum(torch.from_numpy(moved)).numpy()
        return out

    def _part(self, n_own: int) -> Part:
        """Own atoms, their neighbours, and who has those."""
        lmp = self.lmp
        n_all = n_own + lmp.extract_setting("nghost")
        x = np.array(lmp.numpy.extract_atom("x", nelem=n_all)[:n_all]).reshape(-1, 3)
        tags = np.array(lmp.numpy.extract_atom("id", nelem=n_all)[:n_all]).reshape(-1)
        tags = tags.astype(np.int64)
        types = np.array(lmp.numpy.extract_atom("type", nelem=n_all)[:n_all]).reshape(-1) - 1
        check_other_terms(lmp, pair_style="zero")
        cell, pbc = self._cell(), self._pbc()
        if pbc != self._boundary:
            raise InputError("the boundary has changed since attach; attach a new LAMMPS")
        if self.settings.external_field is None:  # digits in single precision
            low, *_ = lmp.extract_box()
            self._centre = np.array(low) + 0.5 * cell.sum(0)
            x = x - self._centre
        sender, receiver = neighbours_of(x, n_own, self._cutoff)
        own = tags[:n_own]
        remote = np.setdiff1d(tags[n_own:], own)
        halo = self._halo_of(own, remote)
        rows = np.concatenate([own, remote])
        order = np.argsort(rows)
        place = order[np.searchsorted(rows[order], tags)]
        base = torch.from_numpy(x[:n_own] if n_own > 0 else np.zeros((1, 3)))
        where = np.concatenate([x[:n_own], halo.fetch(base).numpy()])
        # Sender at x: a whole number of lattice vectors from the row that it is an image of.
        away = x[sender] - where[place[sender]]
        shifts = -np.rint(away @ np.linalg.inv(cell)) if any(pbc) else np.zeros((len(sender), 3))
        species = np.zeros(len(rows), dtype=np.int64)
        species[place] = self._species_of_type[types]
        if not self._checked:
            self._check_neighbours(len(sender))
        return Part(
            halo=halo,
            positions=torch.from_numpy(x[:n_own]),
            species=torch.from_numpy(species),
            index=torch.from_numpy(np.stack([place[sender], receiver])),
            shifts=torch.from_numpy(shifts),
            cell=torch.from_numpy(cell),
            pbc=pbc,
            n_atoms=int(lmp.get_natoms()),
        )

    def _halo_of(self, own: np.ndarray, remote: np.ndarray) -> Halo:
        """The exchange, made anew when LAMMPS has given any process other atoms."""
        known = self._tags
        changed = known is None or not (
            np.array_equal(known[0], own) and np.array_equal(known[1], remote)
        )
        if int(self.processes.sum(torch.tensor([int(changed)]))[0]) > 0 or self._halo is None:
            lost = int(self.lmp.get_natoms()) - int(self.processes.sum(torch.tensor([len(own)]))[0])
            if lost != 0:
                raise InputError(f"LAMMPS lost {lost} atoms; use a shorter timestep, or look at it")
            device = self._shared[0].device
            self._halo = Halo(
                self.processes, torch.from_numpy(own), torch.from_numpy(remote), device
            )
            self._tags = (own, remote)
        return self._halo

    def _check_neighbours(self, n_edges: int) -> None:
        """Refuse ghosts that do not reach as far as the model, once."""
        whole = self._gathered()
        expected = [count_pairs(whole, self._cutoff + margin) for margin in (-1e-6, 1e-6)]
        found = int(self.processes.sum(torch.tensor([n_edges]))[0])
        if not expected[0] <= found <= expected[1]:
            raise InputError(
                f"LAMMPS gives {found} pairs of neighbours within {self._cutoff:g} Å, and there "
                f"are {expected[0]}: its ghost atoms do not reach that far. Leave pair_style and "
                "comm_modify to attach, and neighbor and neigh_modify as it sets them"
            )
        self._checked = True


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
