"""The atoms that LAMMPS gave a process: cell, positions, neighbours, and who has those."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.interfaces.checks import check_other_terms, decoded
from mace_polmp.interfaces.neighbours import count_pairs, neighbours_of
from mace_polmp.parallel import Halo, Part
from mace_polmp.parallel.processes import Processes


class LammpsAtoms:
    """Reads the atoms of a LAMMPS; every process calls each method at the same time.

    Args:
        lmp: lammps.lammps.
        processes: that it runs on.
        numbers: [n_types], the atomic number of each atom type.
        species: [n_types], its place among the model's elements.
        cutoff: of the model, Å.
        is_centred: whether positions are counted from the middle of the box, which keeps digits in
            single precision.
    """

    def __init__(
        self,
        lmp: Any,
        processes: Processes,
        numbers: np.ndarray,
        species: np.ndarray,
        cutoff: float,
        is_centred: bool = True,
    ) -> None:
        self._lmp, self._processes = lmp, processes
        self._numbers, self._species = numbers, species
        self._cutoff, self._is_centred = cutoff, is_centred
        self._boundary = self.pbc()
        self._halo: Halo | None = None
        self._tags: tuple[np.ndarray, np.ndarray] | None = None
        self._centre = np.zeros(3)

    def pbc(self) -> tuple[bool, bool, bool]:
        """The boundary conditions."""
        *_, periodic, _ = self._lmp.extract_box()
        a, b, c = (bool(p) for p in periodic)
        return a, b, c

    def cell(self) -> np.ndarray:
        """Lattice vectors as rows, [3, 3], Å."""
        low, high, xy, yz, xz, *_ = self._lmp.extract_box()
        x, y, z = (np.array(high) - np.array(low)).tolist()
        return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])

    def gathered(self) -> Atoms:
        """The whole structure, on every process, sorted by the numbers of atoms."""
        n = self._lmp.extract_setting("nlocal")
        own = np.zeros((n, 5))
        if n > 0:
            own[:, :3] = self._lmp.numpy.extract_atom("x")[:n]
            own[:, 3] = np.array(self._lmp.numpy.extract_atom("type")[:n]).reshape(-1)
            own[:, 4] = np.array(self._lmp.numpy.extract_atom("id")[:n]).reshape(-1)
        rows, _ = self._processes.gather(torch.from_numpy(own))
        every = rows.numpy()[np.argsort(rows.numpy()[:, 4])]
        numbers = self._numbers[every[:, 3].astype(int) - 1]
        return Atoms(numbers, every[:, :3], cell=self.cell(), pbc=self.pbc())

    def moved(self, charges: np.ndarray) -> np.ndarray:
        """What makes the dipole that of atoms that were never wrapped, where LAMMPS has them.

        Args:
            charges: [n_own], e.

        Returns:
            [3], e Å, to add to the dipole of the part's positions.
        """
        found, n_own = np.zeros(3), len(charges)
        if n_own > 0:
            images = np.array(self._lmp.numpy.extract_atom("image")[:n_own]).reshape(-1)
            found = charges @ (decoded(images) @ self.cell() + self._centre)
        out: np.ndarray = self._processes.sum(torch.from_numpy(found)).numpy()
        return out

    def part(self, n_own: int, device: torch.device) -> Part:
        """Own atoms, their neighbours, and who has those.

        Args:
            n_own: atoms of this process.
            device: of the model.

        Raises:
            InputError: terms of LAMMPS' own beside the model, another boundary than at the start,
                or atoms that are lost.
        """
        lmp = self._lmp
        n_all = n_own + lmp.extract_setting("nghost")
        x = np.array(lmp.numpy.extract_atom("x", nelem=n_all)[:n_all]).reshape(-1, 3)
        tags = np.array(lmp.numpy.extract_atom("id", nelem=n_all)[:n_all]).reshape(-1)
        tags = tags.astype(np.int64)
        types = np.array(lmp.numpy.extract_atom("type", nelem=n_all)[:n_all]).reshape(-1) - 1
        check_other_terms(lmp, pair_style="zero")
        cell, pbc = self.cell(), self.pbc()
        if pbc != self._boundary:
            raise InputError("the boundary has changed since attach; attach a new LAMMPS")
        if self._is_centred:
            low, *_ = lmp.extract_box()
            self._centre = np.array(low) + 0.5 * cell.sum(0)
            x = x - self._centre
        sender, receiver = neighbours_of(x, n_own, self._cutoff)
        own = tags[:n_own]
        remote = np.setdiff1d(tags[n_own:], own)
        halo = self._halo_of(own, remote, device)
        rows = np.concatenate([own, remote])
        order = np.argsort(rows)
        place = order[np.searchsorted(rows[order], tags)]
        base = torch.from_numpy(x[:n_own] if n_own > 0 else np.zeros((1, 3)))
        where = np.concatenate([x[:n_own], halo.fetch(base).numpy()])
        # Sender at x: a whole number of lattice vectors from the row that it is an image of.
        away = x[sender] - where[place[sender]]
        shifts = -np.rint(away @ np.linalg.inv(cell)) if any(pbc) else np.zeros((len(sender), 3))
        species = np.zeros(len(rows), dtype=np.int64)
        species[place] = self._species[types]
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

    def _halo_of(self, own: np.ndarray, remote: np.ndarray, device: torch.device) -> Halo:
        """The exchange, made anew when LAMMPS has given any process other atoms."""
        known = self._tags
        changed = known is None or not (
            np.array_equal(known[0], own) and np.array_equal(known[1], remote)
        )
        if int(self._processes.sum(torch.tensor([int(changed)]))[0]) > 0 or self._halo is None:
            here = int(self._processes.sum(torch.tensor([len(own)]))[0])
            lost = int(self._lmp.get_natoms()) - here
            if lost != 0:
                raise InputError(f"LAMMPS lost {lost} atoms; use a shorter timestep, or look at it")
            self._halo = Halo(
                self._processes, torch.from_numpy(own), torch.from_numpy(remote), device
            )
            self._tags = (own, remote)
        return self._halo

    def check_neighbours(self, n_edges: int) -> None:
        """Refuse ghosts that do not reach as far as the model.

        Args:
            n_edges: pairs of neighbours that this process has.

        Raises:
            InputError: other pairs than the whole structure has.
        """
        whole = self.gathered()
        expected = [count_pairs(whole, self._cutoff + margin) for margin in (-1e-6, 1e-6)]
        found = int(self._processes.sum(torch.tensor([n_edges]))[0])
        if not expected[0] <= found <= expected[1]:
            raise InputError(
                f"LAMMPS gives {found} pairs of neighbours within {self._cutoff:g} Å, and there "
                f"are {expected[0]}: its ghost atoms do not reach that far. Leave pair_style and "
                "comm_modify to attach, and neighbor and neigh_modify as it sets them"
            )
