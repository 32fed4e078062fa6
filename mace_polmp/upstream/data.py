"""Structures on their way into mace-torch: graphs, and the labels that were checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mace.data as upstream_package
import numpy as np
import torch
from ase import Atoms
from mace.data import AtomicData, Configuration
from mace.data import atomic_data as upstream_graphs
from mace.data import utils as upstream_utils
from scipy.spatial import KDTree

from mace_polmp.errors import InputError
from mace_polmp.labels import complete, read_label, with_labels
from mace_polmp.quantities import LABELS
from mace_polmp.reading import read_structures
from mace_polmp.structures import (
    TOTAL_CHARGE,
    Moved,
    is_isolated_atom,
    near_origin,
    total_charge,
)
from mace_polmp.upstream.names import check_names, replaced

check_names(
    {
        upstream_graphs: ("get_neighborhood",),
        upstream_utils: ("config_from_atoms",),
        upstream_package: ("AtomicData", "load_from_xyz"),
    }
)

_CELL = 5.0  # upstream's cell of an open structure, in units of its extent times the cutoff


class LastNeighbours:
    """The last neighbour list, for whoever asks for that of the same structure again."""

    def __init__(self) -> None:
        self._inputs: tuple[np.ndarray, ...] | None = None
        self._found: tuple[Any, Any, Any, Any] | None = None

    def __call__(
        self, make: Callable[..., tuple[Any, Any, Any, Any]], *inputs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """What make gives of these inputs, numbers and arrays."""
        arrays = tuple(np.array(value) for value in inputs)
        known = self._inputs
        if known is None or not all(map(np.array_equal, known, arrays)):
            self._found, self._inputs = make(*inputs), arrays
        assert self._found is not None
        return self._found


@contextmanager
def own_graphs(last: LastNeighbours | None = None) -> Iterator[None]:
    """Neighbours of open structures at any distance, and cells of slabs as they were given.

    Upstream sorts the atoms of an open structure into boxes that fill a cell around the origin: one
    atom at 100 Å makes a million of them. And it makes the cell of a slab much longer.

    Args:
        last: keeps the neighbours of one structure.
    """
    get_neighborhood = upstream_graphs.get_neighborhood

    def neighbours(
        positions: Any, cutoff: float, pbc: Any = None, cell: Any = None, **named: Any
    ) -> tuple[Any, Any, Any, Any]:
        if last is not None and not named:
            return last(found_anew, positions, cutoff, pbc, cell)
        return found_anew(positions, cutoff, pbc, cell, **named)

    def found_anew(
        positions: Any, cutoff: float, pbc: Any, cell: Any, **named: Any
    ) -> tuple[Any, Any, Any, Any]:
        if pbc is None or not any(pbc):
            return _open_neighbours(np.asarray(positions), float(cutoff))
        given = None if cell is None else cell.copy()
        found = get_neighborhood(positions, cutoff, pbc, cell, **named)
        if given is None or sum(pbc) != 2:
            return found
        return (*found[:3], given)

    with replaced(upstream_graphs, get_neighborhood=neighbours):
        yield


def _open_neighbours(
    positions: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Senders and receivers [2, n_edges], shifts and unit shifts [n_edges, 3], upstream's cell."""
    pairs = KDTree(positions).query_pairs(cutoff, output_type="ndarray")
    edges = np.concatenate([pairs, pairs[:, ::-1]])
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))].T
    none = np.zeros((edges.shape[1], 3))
    size = (np.abs(positions).max() + 1.0) * _CELL * cutoff
    return np.ascontiguousarray(edges), none, none.astype(int), size * np.eye(3)


@contextmanager
def own_labels(keys: dict[str, str], frames: dict[str, list[Atoms]]) -> Iterator[None]:
    """Let upstream's training read labels and structures as mace_polmp checks them.

    Args:
        keys: of the electrical labels in use, which upstream does not look for.
        frames: files that were read already; each is forgotten once it has been used.
    """
    config_from_atoms = upstream_utils.config_from_atoms

    def from_atoms(atoms: Atoms, key_specification: Any, *rest: Any, **named: Any) -> Configuration:
        wanted = keys | {
            name: key
            for kind in (key_specification.info_keys, key_specification.arrays_keys)
            for name, key in kind.items()
            if name in LABELS
        }
        single = torch.get_default_dtype() == torch.float32
        moved = near_origin(atoms) if single else Moved(atoms, None)
        labelled = with_labels(moved.atoms, wanted)
        if moved.by is not None and wanted.get("dipole") in labelled.info:
            # The dipole of a charged structure is about the origin, which has moved.
            charge = total_charge(atoms, key=wanted.get("total_charge", TOTAL_CHARGE)) or 0.0
            labelled.info[wanted["dipole"]] += charge * moved.by[0]
        config = config_from_atoms(labelled, key_specification, *rest, **named)
        used = {n: key for n, key in wanted.items() if n in keys or n in config.properties}
        return complete(config, labelled, used)

    def load(
        file_path: str,
        key_specification: Any,
        head_name: str = "Default",
        config_type_weights: dict[str, float] | None = None,
        extract_atomic_energies: bool = False,
        keep_isolated_atoms: bool = False,
        no_data_ok: bool = False,
    ) -> tuple[dict[int, float], list[Configuration]]:
        """What upstream's function of the same arguments returns: atomic energies and frames."""
        atoms_list = frames.pop(str(file_path), None) or read_structures(file_path)
        energies: dict[int, float] = {}
        kept = []
        for number, atoms in enumerate(atoms_list):
            isolated = extract_atomic_energies and is_isolated_atom(atoms)
            if isolated:
                key = key_specification.info_keys["energy"]
                energies.update(isolated_energy(atoms, key, f"{file_path}: frame {number}"))
            if not isolated or keep_isolated_atoms:
                kept.append(
                    from_atoms(
                        atoms,
                        key_specification,
                        config_type_weights=config_type_weights,
                        head_name=head_name,
                    )
                )
        return energies, kept

    with replaced(upstream_package, load_from_xyz=load, AtomicData=ExactData):
        yield


class ExactData(AtomicData):  # type: ignore[misc]
    """Upstream's graph of a structure; in single precision also what is missing of its energy."""

    @classmethod
    def from_config(cls, config: Configuration, *rest: Any, **named: Any) -> AtomicData:
        graph = super().from_config(config, *rest, **named)
        if graph.energy.dtype == torch.float32:
            energy = config.properties.get("energy") or 0.0
            graph.energy_rest = torch.tensor(float(energy) - float(np.float32(energy)))
        return graph


def isolated_energy(atoms: Atoms, key: str, where: str) -> dict[int, float]:
    """The energy of an isolated atom by its element.

    Raises:
        InputError: it has none.
    """
    label = read_label(atoms, "energy", key, where)
    if label is None:
        raise InputError(
            f"{where}: is an IsolatedAtom without the energy '{key}'; give it one, or leave the "
            "frame out and give --E0s"
        )
    return {int(atoms.numbers[0]): float(label)}
