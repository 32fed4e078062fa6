"""MultipoleMACE models in torch-sim: many structures in one batch, moved and relaxed together.

Tested with torch-sim-atomistic 0.3.0.
"""

from __future__ import annotations

# isort: off
import mace_polmp.quiet  # noqa: F401  before mace

# isort: on
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import mace  # noqa: F401  before e3nn
import numpy as np
import torch
from ase import Atoms
from mace.data import atomic_data
from torch import Tensor

from mace_polmp.calculators.checks import check_neutral, in_single_precision
from mace_polmp.electrostatics import PlanKeeper
from mace_polmp.errors import InputError
from mace_polmp.head.observables import screening_factor
from mace_polmp.interfaces.batches import charges_by_composition, composition
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.heads import head_index
from mace_polmp.modules.io import check_device, load_model
from mace_polmp.modules.outputs import ELECTRICAL_OUTPUTS, charges_of_place
from mace_polmp.structures import check_structure
from mace_polmp.upstream.data import own_graphs

try:
    import torch_sim as ts
    from torch_sim.models.interface import ModelInterface
    from torch_sim.typing import MemoryScaling
except ImportError as error:
    raise ImportError(
        f"mace_polmp.interfaces.torch_sim needs torch-sim ({error}): "
        "pip install 'mace-polmp[torch-sim]'"
    ) from error

upstream_graphs: Any = atomic_data  # as upstream/data.py replaces it

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.float64)


class MultipoleMACEModel(ModelInterface):  # type: ignore[misc]
    """A MultipoleMACE as a model of torch-sim, for its integrators, optimizers and runners.

    A state holds systems of one kind: all periodic (pbc True) or all open (pbc False; their cells
    are not used and may be zero). Its flag cannot say that systems are slabs, and its functions
    turn the pbc of a slab into False: say it with pbc.

    Neither has a state a place for total charges, and torch-sim sorts systems into batches in an
    order of its own: the total charge is one number, or goes by what a system consists of.

    Args:
        model: a .model or .safetensors file, or a loaded model, which stays as it is.
        device: None for the GPU if there is one.
        dtype: of the model and of the states it will get, torch.float64 or torch.float32.
        compute_forces, compute_stress: whether results have them; can be set later.
        total_charge: of each system, e, which models with constrained charges know; a number for
            all of them, or numbers by formula, such as {"H3O": 1, "OH": -1, "H2O": 0}. Where it
            says nothing 0 is assumed, and said once.
        pbc: (True, True, False), or another order, for slabs, in states with pbc False.
        head: of a model with several.
        memory_scales_with: what torch-sim's autobatchers measure the memory of a system by,
            "n_atoms" or, for periodic systems of very different densities, "n_atoms_x_density".

    Raises:
        InputError: a file that is not a MultipoleMACE, or an argument that does not work.
    """

    def __init__(
        self,
        model: str | Path | MultipoleMACE,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
        total_charge: float | Mapping[str, float] | None = None,
        pbc: Sequence[bool] | None = None,
        head: str | None = None,
        memory_scales_with: str = "n_atoms",
    ) -> None:
        super().__init__()
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device, "device")
        if dtype not in _DTYPES:
            raise InputError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
        if memory_scales_with not in get_args(MemoryScaling):
            names = " or ".join(sorted(get_args(MemoryScaling)))
            raise InputError(f"memory_scales_with must be {names}, got {memory_scales_with!r}")
        if isinstance(model, str | Path):
            model = load_model(model)
        elif not isinstance(model, MultipoleMACE):
            raise InputError(f"model must be a file or a MultipoleMACE, got {type(model).__name__}")
        else:
            model = deepcopy(model)
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._device = torch.empty(0, device=device).device
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress
        self._memory_scales_with = memory_scales_with
        self._head = head_index(head, list(model.heads))
        own: Any = self.model  # its buffers have no types
        self._elements = [int(z) for z in own.atomic_numbers]
        self._cutoff = float(own.r_max)
        self._row = np.zeros(max(self._elements) + 1, dtype=np.int64)  # of an atomic number
        self._row[self._elements] = np.arange(len(self._elements))
        self._slab = _slab_flags(pbc)
        self._plans = PlanKeeper([model.electrostatics])
        self._said: set[str] = set()
        self.total_charge = total_charge

    @property
    def total_charge(self) -> float | Mapping[str, float] | None:
        """The total charge of every system, e, or total charges by formula."""
        return self._total_charge

    @total_charge.setter
    def total_charge(self, value: float | Mapping[str, float] | None) -> None:
        self._charges = charges_by_composition(value)
        self._total_charge = value
        constrained = self.model.long_range_options.constrain_charge != "none"
        if value is None and constrained:
            self._say("total charge 0 e of every system: nothing given (say it with total_charge)")
        if value is not None and not constrained:
            self._say("total_charge has no effect: the model was trained without constrain_charge")

    @property
    def compute_stress(self) -> bool:
        """Whether results have stresses."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether results have forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    def forward(self, state: ts.SimState | dict[str, Any]) -> dict[str, Tensor]:
        """Evaluate all systems of a state, which stays as it is.

        Args:
            state: of torch-sim, or a dictionary of what makes one. Positions may lie anywhere,
                but atoms of slabs must not be wrapped along the direction that is not periodic.

        Returns:
            energy [n_systems] eV, in double precision; forces [n_atoms, 3] eV/Å; stress
            [n_systems, 3, 3] eV/Å³, NaN of open systems, which have no volume;
            charges [n_atoms] e, permanent plus induced; atomic_dipoles [n_atoms, 3] e Å;
            atomic_quadrupoles [n_atoms, 3, 3] e Å²; atomic_polarizabilities [n_atoms, 3, 3] and
            polarizability [n_systems, 3, 3] e² Å²/eV, the latter not of models with a
            self-consistent response, where it takes three more solutions; dipole [n_systems, 3]
            e Å, Σ q r + μ about the origin, of periodic systems multiplied by √ε∞ and without a
            meaning across steps, where torch-sim wraps atoms; long_range_energy [n_systems] eV.

        Raises:
            InputError: a system that the model cannot evaluate, or a state of another dtype or
                device than the model.
        """
        state = _as_state(state)
        self._check_tensors(state)
        flags = self._flags(state)
        counts = torch.bincount(state.system_idx, minlength=len(state.cell)).cpu()
        structures = _structures(state, counts, flags)
        cells = state.row_vector_cell.detach().cpu().double()
        pbc = torch.tensor(flags).expand(len(structures), 3)
        self._check(structures, with_boundary=not self._plans.knows(cells, pbc, counts))
        moved_by = None
        if self.dtype == torch.float32:
            near = [in_single_precision(atoms, False) for atoms in structures]
            structures = [one.atoms for one in near]
            if any(one.by is not None for one in near):
                moves = [np.zeros((len(o.atoms), 3)) if o.by is None else o.by for o in near]
                moved_by = torch.from_numpy(np.concatenate(moves)).to(self.device)
        data = self._data(structures, pbc, counts)
        try:
            data["plan"] = self._plans.of(cells, pbc, counts, self.device, self.dtype)
        except ValueError as error:  # its arrays do not fit into memory
            raise InputError(f"state: {error}") from error
        with torch.enable_grad():
            out = self.model(
                data,
                compute_force=self.compute_forces,
                compute_stress=self.compute_stress and any(flags),
            )
        results = self._results(out, data)
        if moved_by is not None:
            numbers = state.atomic_numbers.tolist()
            charges = charges_of_place(self.model, results["charges"].double(), numbers)
            shift = torch.zeros_like(results["dipole"], dtype=torch.float64)
            shift.index_add_(0, data["batch"], charges[:, None] * moved_by)
            results["dipole"] = (results["dipole"].double() - shift).to(self.dtype)
        factor = screening_factor(None, data["pbc"], self.model.permittivity())
        results["dipole"] = results["dipole"] * factor.to(results["dipole"])[:, None]
        return results

    def _results(self, out: dict[str, Tensor | None], data: dict[str, Any]) -> dict[str, Tensor]:
        """What torch-sim gets of the model's outputs."""
        names = ["energy", *(["forces"] if self.compute_forces else []), *ELECTRICAL_OUTPUTS]
        found = {name: out[name] for name in names}
        results = {name: value.detach() for name, value in found.items() if value is not None}
        if self.compute_stress:
            stress = out["stress"]
            if stress is None:
                stress = torch.full_like(data["cell"].view(-1, 3, 3), torch.nan)
            results["stress"] = stress.detach()
        return results

    def _data(self, structures: list[Atoms], pbc: Tensor, counts: Tensor) -> dict[str, Any]:
        """The batch dictionary of the model."""
        where = {"device": self.device, "dtype": self.dtype}
        edge_index, unit_shifts, cell = _neighbours(structures, self._cutoff)
        cells = torch.from_numpy(cell).to(**where)
        number = torch.arange(len(structures))
        batch = torch.repeat_interleave(number, counts).to(self.device)
        edges = torch.from_numpy(edge_index).to(self.device)
        units = torch.from_numpy(unit_shifts).to(**where)
        elements = self._row[np.concatenate([atoms.numbers for atoms in structures])]
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(elements), len(self._elements))
        positions = np.concatenate([atoms.positions for atoms in structures])
        charges = [self._charge(atoms, n) for n, atoms in enumerate(structures)]
        return {
            "positions": torch.from_numpy(positions).to(**where),
            "cell": cells.view(-1, 3),
            "pbc": pbc.to(self.device),
            "batch": batch,
            "ptr": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(self.device),
            "node_attrs": one_hot.to(**where),
            "edge_index": edges,
            "unit_shifts": units,
            "shifts": torch.einsum("ea,eab->eb", units, cells[batch[edges[0]]]),
            "head": torch.full((len(structures),), self._head, device=self.device),
            "total_charge": torch.tensor(charges, **where),
            "with_polarizability": False,
        }

    def _check_tensors(self, state: ts.SimState) -> None:
        """Refuse a state whose tensors the model cannot take."""
        for name, tensor in (("positions", state.positions), ("cell", state.cell)):
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise InputError(
                    f"state: {name} must be {self.dtype} on {self.device}, as the model, got "
                    f"{tensor.dtype} on {tensor.device}; make the state with dtype=model.dtype and "
                    "device=model.device, or the model with those of the state"
                )
        index = state.system_idx
        if bool((index.diff() < 0).any()):
            raise InputError(
                "state: system_idx must grow from 0 on, the atoms of one system after those of the "
                "other; sort the atoms by system"
            )

    def _flags(self, state: ts.SimState) -> list[bool]:
        """The boundary conditions of all systems, [3]."""
        given = torch.as_tensor(state.pbc).cpu().bool().reshape(-1).tolist()
        if len(given) not in (1, 3) or len(set(given)) > 1:
            raise InputError(
                f"state: pbc must be one flag, True or False, got {given}: torch-sim would wrap "
                "atoms along all directions. For slabs make the state with pbc=False and the model "
                "with pbc=(True, True, False)"
            )
        if self._slab is not None:
            if given[0]:
                raise InputError(
                    "state: has pbc True, with which torch-sim wraps atoms through the vacuum of a "
                    f"slab; give it pbc=False, the model knows that pbc is {self._slab}"
                )
            return list(self._slab)
        if not given[0] and bool((torch.linalg.det(state.cell).abs() > 0).any()):
            self._say(
                "state: pbc is False, its systems are evaluated as open and their cells are not "
                "used. torch-sim makes pbc False of slabs, too: for those make the model with "
                "pbc=(True, True, False)"
            )
        return [given[0]] * 3

    def _check(self, structures: list[Atoms], with_boundary: bool) -> None:
        """Refuse what the model cannot evaluate, as the ASE calculator does."""
        engine = self.model.electrostatics
        for number, atoms in enumerate(structures):
            where = f"state: system {number}"
            check_structure(atoms, where, self._elements, engine, with_boundary)
            check_neutral([self.model], atoms, where)
        self._say(self.model.trained_on.unknown_boundary(structures[0].pbc))

    def _charge(self, atoms: Atoms, number: int) -> float:
        """The total charge of a system, e."""
        if not isinstance(self._charges, dict):
            return self._charges
        charge = self._charges.get(composition(atoms))
        if charge is None:
            raise InputError(
                f"state: system {number} is {atoms.symbols.get_chemical_formula()}, for which "
                f"total_charge has no number; give it one"
            )
        return charge

    def _say(self, sentence: str | None) -> None:
        """Log a sentence once."""
        if sentence is not None and sentence not in self._said:
            self._said.add(sentence)
            logger.warning(sentence)


def _as_state(state: ts.SimState | dict[str, Any]) -> ts.SimState:
    """A state, from that or a dictionary, which may lack masses."""
    if not isinstance(state, dict):
        return state
    return ts.SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})


def _structures(state: ts.SimState, counts: Tensor, flags: list[bool]) -> list[Atoms]:
    """The systems of a state on the host, in double precision."""
    positions = state.positions.detach().cpu().double().numpy()
    numbers = state.atomic_numbers.cpu().numpy()
    cells = state.row_vector_cell.detach().cpu().double().numpy()
    ends = np.cumsum(counts.numpy())
    return [
        Atoms(numbers[end - n : end], positions[end - n : end], cell=cell, pbc=flags)
        for n, end, cell in zip(counts.tolist(), ends.tolist(), cells, strict=True)
    ]


def _neighbours(
    structures: list[Atoms], cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours as the ASE calculator finds them.

    Returns:
        Senders and receivers in the batch [2, n_edges], unit shifts [n_edges, 3], cells
        [n_systems, 3, 3].
    """
    edges, units, cells, start = [], [], [], 0
    with own_graphs():
        for atoms in structures:
            found, _, unit, cell = upstream_graphs.get_neighborhood(
                atoms.positions, cutoff, tuple(atoms.pbc.tolist()), atoms.cell.array.copy()
            )
            edges.append(found.astype(np.int64) + start)
            units.append(unit)
            cells.append(cell)
            start += len(atoms)
    return np.concatenate(edges, axis=1), np.concatenate(units), np.stack(cells)


def _slab_flags(pbc: Any) -> tuple[bool, bool, bool] | None:
    """The boundary conditions of slabs, as they were asked for.

    Raises:
        InputError: not those of a slab.
    """
    if pbc is None:
        return None
    flags = np.asarray(pbc)
    if flags.shape != (3,) or flags.dtype != bool or flags.sum() != 2:
        raise InputError(
            "pbc must be that of a slab, such as (True, True, False); of open and periodic "
            f"systems the state says it: leave it out. Got {pbc!r}"
        )
    return (bool(flags[0]), bool(flags[1]), bool(flags[2]))
