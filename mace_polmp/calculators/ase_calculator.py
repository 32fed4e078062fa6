"""The ASE calculator of MultipoleMACE models."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from mace_polmp.errors import InputError
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.modules.io import load_model
from mace_polmp.modules.model import ELECTRICAL_OUTPUTS
from mace_polmp.structures import check_boundary, check_structure

_REFUSED = ("compile_mode", "enable_cueq", "enable_oeq", "pad_num_atoms", "pad_num_edges")


class MultipoleMACECalculator(MACECalculator):
    """ASE calculator of one MultipoleMACE or of a committee.

    Results, in ASE's units: energy, free_energy (eV), forces (eV/Å), stress (eV/Å³, Voigt),
    charges (e, permanent plus induced), dipole (e Å, Σ q r + μ about the origin of the
    coordinates; for a periodic structure only its changes along unwrapped positions mean
    something), and atomic_dipoles [n, 3] e Å, atomic_quadrupoles [n, 3, 3] e Å²,
    atomic_polarizabilities [n, 3, 3] and polarizability [3, 3] e² Å²/eV, long_range_energy eV;
    and, where asked for, born_charges [n, 3, 3] e (polarization, displacement).
    A committee returns means, and energy_var, forces_comm, dipole_var and so on as upstream.

    Args:
        model_paths: a .model file, a pattern such as "committee_*.model", or a list of files.
        models: loaded models, instead of model_paths.
        device: "cpu", "cuda", …
        default_dtype: "float32" or "float64"; "" keeps the model's.
        external_field: uniform field [3], V/Å, or None. Open structures only.
        **kwargs: of mace.calculators.MACECalculator. Its compile_mode, enable_cueq, enable_oeq
            and padding do not work with this model and are refused.

    Raises:
        InputError: a file that is not a MultipoleMACE, no model or an option that does not work.
    """

    def __init__(
        self,
        model_paths: str | Path | Sequence[str | Path] | None = None,
        models: MultipoleMACE | list[MultipoleMACE] | None = None,
        device: str = "cpu",
        default_dtype: str = "",
        external_field: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _REFUSED:
            if kwargs.get(name):
                raise InputError(f"{name} does not work with a MultipoleMACE; leave it out")
        if kwargs.get("compute_atomic_stresses"):
            raise InputError(
                "compute_atomic_stresses: a long-range energy has no atomic stresses; leave it out"
            )
        if default_dtype not in ("", "float32", "float64"):
            raise InputError(f"default_dtype must be float32 or float64, got {default_dtype!r}")
        if (model_paths is None) == (models is None):
            raise InputError("give either model_paths or models")
        if models is None:
            models = [load_model(path, device) for path in _expand(model_paths)]
        loaded = list(models) if isinstance(models, list | tuple) else [models]
        for model in loaded:
            if not isinstance(model, MultipoleMACE):
                raise InputError(f"models must be MultipoleMACE, got {type(model).__name__}")
        # Upstream extends the class attribute in place; a list of its own stays with the instance.
        self.implemented_properties = []
        super().__init__(models=loaded, device=device, default_dtype=default_dtype, **kwargs)
        # Energies per atom would not add up to the energy: the long-range part has no atoms.
        own = [p for p in self.implemented_properties if p not in ("energies", "node_energy")]
        own += [*ELECTRICAL_OUTPUTS, "born_charges"]
        if self.num_models > 1:
            own += ["dipole_comm", "dipole_var"]
        self.implemented_properties = own
        self.external_field = external_field

    @property
    def external_field(self) -> np.ndarray | None:
        """Uniform external field [3], V/Å; setting it discards the results."""
        return self._external_field

    @external_field.setter
    def external_field(self, value: Sequence[float] | None) -> None:
        field = None if value is None else np.array(value, dtype=float)
        if field is not None and (field.shape != (3,) or not np.isfinite(field).all()):
            raise InputError(f"external_field must be three finite numbers in V/Å, got {value}")
        self._external_field = field
        self.results = {}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list:
        # Results emptied by a new field must not count as up to date.
        return super().check_state(atoms, tol) if self.results else all_changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the structure; all properties at once, as upstream.

        Raises:
            InputError: a structure that cannot be evaluated, or an external field on a periodic
                one.
        """
        atoms = self.atoms if atoms is None else atoms
        first, *others = self.models
        check_structure(atoms, "atoms", self.z_table.zs, first.electrostatics)
        for model in others:
            check_boundary(atoms, "atoms", model.electrostatics)
        if self._external_field is not None and atoms.pbc.any():
            raise InputError(
                "external_field on a periodic structure is not available in this version: the "
                "energy of a charge in a field is not defined there. Set pbc to F F F or leave "
                "the field out"
            )
        super().calculate(atoms, properties, system_changes)
        for name in ("energies", "node_energy"):
            self.results.pop(name, None)
        for name in ELECTRICAL_OUTPUTS:
            mean = self._outputs[name].mean(0).cpu().numpy()
            self.results[name] = mean if mean.ndim else float(mean)
        if properties is not None and "born_charges" in properties:
            batch = self._atoms_to_batch(atoms)
            tensors = [born_charges(m, self._clone_batch(batch).to_dict()) for m in self.models]
            self.results["born_charges"] = torch.stack(tensors).mean(0).cpu().numpy()

    def _atoms_to_batch(self, atoms: Atoms) -> Any:
        batch = super()._atoms_to_batch(atoms)
        if atoms.pbc.sum() == 2:
            # Upstream makes the cell much longer where it is not periodic.
            cell = np.array(atoms.cell.array)
            batch["cell"] = torch.as_tensor(cell, dtype=batch["cell"].dtype, device=self.device)
        if self._external_field is not None:
            field = torch.as_tensor(
                self._external_field, dtype=batch["positions"].dtype, device=self.device
            )
            batch["applied_field"] = field.view(1, 3)
        return batch

    def _create_result_tensors(
        self, num_models: int, num_atoms: int, batch: Any, out: dict
    ) -> tuple[dict, Any]:
        """Upstream's table of results [n_models, …], which it fills model by model, and ours."""
        tensors, node_e0 = super()._create_result_tensors(num_models, num_atoms, batch, out)
        for name, (per_atom, shape) in ELECTRICAL_OUTPUTS.items():
            full = (num_models, num_atoms, *shape) if per_atom else (num_models, *shape)
            tensors[name] = torch.zeros(full, dtype=out[name].dtype, device=self.device)
        self._outputs = tensors
        return tensors, node_e0


def _expand(model_paths: Any) -> list[Path]:
    """Files of a path, a pattern or a list of both, in order."""
    given = [model_paths] if isinstance(model_paths, str | Path) else list(model_paths)
    paths: list[Path] = []
    for item in given:
        found = sorted(glob(str(item))) if any(c in str(item) for c in "*?[") else [str(item)]
        if not found:
            raise InputError(f"model_paths: no file matches {item}")
        paths += [Path(name) for name in found]
    if not paths:
        raise InputError("model_paths: give at least one .model file")
    return paths
