"""The ASE calculator of MultipoleMACE models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from mace_polmp.calculators.checks import (
    check_committee,
    check_field,
    check_neutral,
    check_options,
    check_permittivity,
    check_screening,
    expand,
    has_formal_charges,
    in_single_precision,
    place_in_field,
)
from mace_polmp.calculators.fields import (
    FieldLike,
    InFields,
    add_displacement,
    check_displacement,
    conjugate_field,
)
from mace_polmp.calculators.on_demand import ON_DEMAND
from mace_polmp.calculators.outputs import (
    moved_back,
    on_host,
    screening,
    spread_of_dipoles,
    with_outputs,
    zero_field_energy,
)
from mace_polmp.electrostatics import PlanKeeper
from mace_polmp.errors import InputError
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.accelerated import is_accelerated, with_cuequivariance
from mace_polmp.modules.born_charges import field_on_charges
from mace_polmp.modules.compiled import compiled_copy
from mace_polmp.modules.heads import check_head
from mace_polmp.modules.io import check_device, load_model
from mace_polmp.modules.model import ELECTRICAL_OUTPUTS
from mace_polmp.modules.summary import dtype_name
from mace_polmp.structures import (
    check_boundary,
    check_structure,
    near_origin,
    numbers_of,
    total_charge,
)
from mace_polmp.upstream.data import LastNeighbours, own_graphs

logger = logging.getLogger(__name__)


class MultipoleMACECalculator(InFields, MACECalculator):
    """ASE calculator of one MultipoleMACE or of a committee.

    Results, in ASE's units: energy, free_energy (eV), forces (eV/Å), stress (eV/Å³, Voigt),
    charges (e, permanent plus induced), dipole (e Å, Σ q r + μ about the origin of the
    coordinates; for a periodic structure only its changes along unwrapped positions mean
    something), and atomic_dipoles [n, 3] e Å, atomic_quadrupoles [n, 3, 3] e Å²,
    atomic_polarizabilities [n, 3, 3] and polarizability [3, 3] e² Å²/eV, long_range_energy eV;
    and, where asked for (of a self-consistent response polarizability as well), born_charges
    [n, 3, 3] e, electronic_polarizability [3, 3] e² Å²/eV (with local fields; of a
    cell eps0 V (ε∞ − 1)) and electronic_permittivity [3, 3] (ε∞ of a periodic structure).
    A committee returns means, and energy_var, forces_comm, dipole_var and so on as upstream.
    The total charge of a structure, e, which models with constrained charges know, is what
    atoms.info has under the key that the model was trained with, as "total_charge" or, as
    upstream's calculator calls it, as "charge". Where it says nothing 0 is assumed, and said once.

    Args:
        model_paths: a .model or .safetensors file, a pattern such as "committee_*.model", or a list
            of files.
        models: loaded models, instead of model_paths.
        device: "cpu", "cuda", …
        default_dtype: "float32" or "float64"; "" keeps the model's.
        external_field: uniform field [3], V/Å, or a function that gives one for a time in fs (see
            follow), or None. Energy and forces in the field are those of −D·F − ½ F·α·F. Along
            periodic directions the energy of a charge is not defined and refused, but with
            charge_readout bond; forces Z*ᵀF, response included, are those of the Born charges,
            and zero_field_energy is the energy without the field. The field is the macroscopic
            one: in structures that are periodic in three directions it acts on physical charges,
            √ε∞ times the latent ones.
        displacement_field: [3], e/Å², or None: the displacement field D of a periodic structure
            that is kept in place of a field, see fields.py; energy, forces and stress are those of
            U = E + eps0 V/2 |(D − P)/eps0|². Of models with charge_readout bond.
        epsilon_infinity, divide_by_chi: screening of the dipole and born_charges of periodic
            structures (see head.observables.screening_factor), and the field on latent charges.
            None for the permittivity that the model was given or has learned.
        sum_rule: whether to enforce the acoustic sum rule on born_charges (of an open structure
            they sum to its total charge), those of a field along periodic directions included: it
            then does not push the structure as a whole.
        compile_mode: "default", or another mode of torch.compile, for long runs of one structure:
            the first step takes minutes, others two thirds of their time. None for no compiling.
        enable_cueq: evaluate the backbone with cuEquivariance.
        **kwargs: of mace.calculators.MACECalculator. Its enable_oeq and padding do not work with
            this model and are refused.

    Raises:
        InputError: a file that is not a MultipoleMACE, no model or an option that does not work.
    """

    def __init__(
        self,
        model_paths: str | Path | Sequence[str | Path] | None = None,
        models: MultipoleMACE | list[MultipoleMACE] | None = None,
        device: str = "cpu",
        default_dtype: str = "",
        external_field: FieldLike = None,
        epsilon_infinity: float | None = None,
        divide_by_chi: bool = False,
        sum_rule: bool = False,
        compile_mode: str | None = None,
        enable_cueq: bool = False,
        displacement_field: Sequence[float] | np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        check_options(kwargs, default_dtype)
        if (model_paths is None) == (models is None):
            raise InputError("give either model_paths or models")
        check_device(device, "device")
        if models is None:
            models = [load_model(path) for path in expand(model_paths)]
        loaded: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
        for model in loaded:
            if not isinstance(model, MultipoleMACE):
                raise InputError(f"models must be MultipoleMACE, got {type(model).__name__}")
        check_committee(loaded)
        check_head(kwargs.get("head"), loaded[0].heads, "head")
        if enable_cueq:
            loaded = [m if is_accelerated(m) else with_cuequivariance(m) for m in loaded]
        # Upstream extends the class attribute in place; a list of its own stays with the instance.
        self.implemented_properties = []
        dtype = default_dtype or dtype_name(loaded[0])
        super().__init__(models=loaded, device=device, default_dtype=dtype, **kwargs)
        # Upstream's energies per atom lack the long-range part: on_demand.py has all of them.
        own = [p for p in self.implemented_properties if p not in ("energies", "node_energy")]
        own += [*ELECTRICAL_OUTPUTS, *ON_DEMAND, "zero_field_energy"]
        if self.num_models > 1:
            own += ["dipole_comm", "dipole_var"]
        self.implemented_properties = own
        check_permittivity(loaded, epsilon_infinity, divide_by_chi)
        self.epsilon_infinity = epsilon_infinity
        self.divide_by_chi = divide_by_chi
        self.sum_rule = sum_rule
        self._said: set[str] = set()
        self._plans = PlanKeeper(
            [model.electrostatics for model in loaded], keeps_cells=compile_mode is None
        )
        if compile_mode is not None:  # the caller's models stay as they are
            self.models = [compiled_copy(model, compile_mode) for model in self.models]
        self._neighbours = LastNeighbours()
        self._asked_charge_key = (kwargs.get("info_keys") or {}).get("total_charge")
        self.time = 0.0  # fs; of the next evaluation, for a field that depends on it
        self._clock = 0.0  # of the last
        self._asks = False  # for the polarizability
        self._moved: np.ndarray | None = None  # what brought the structure to the origin
        self.external_field = external_field
        self.displacement_field = displacement_field

    def __repr__(self) -> str:
        models = ", ".join(map(repr, self.models))
        return f"{type(self).__name__}({models}, device={str(self.device)!r})"

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        # Results emptied by a new field must not count as up to date, nor those of another charge.
        before: Any = self.atoms
        if not self.results or self.total_charge(before) != self.total_charge(atoms):
            return list(all_changes)
        return list(super().check_state(atoms, tol))

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the structure; all properties at once, as upstream.

        Raises:
            InputError: a structure that cannot be evaluated, the energy or stress of a periodic one
                in an external field, or a field in the plane of a slab.
        """
        atoms = self._given(atoms)
        asked = set(properties or ())
        if system_changes or not self.results or asked - set(self.results) - set(ON_DEMAND):
            self._evaluate(atoms, properties, asked, system_changes)
        wanted = [name for name in ON_DEMAND if name in asked]
        if wanted:
            # Far from the origin, latent charges that do not sum to zero would have large ones.
            batch = self._atoms_to_batch(near_origin(atoms).atoms)
            for name in wanted:
                values = [ON_DEMAND[name](self, model, batch) for model in self.models]
                self.results[name] = torch.stack(values).mean(0).detach().cpu().numpy()

    def _evaluate(
        self,
        atoms: Atoms,
        properties: Sequence[str] | None,
        asked: set[str],
        system_changes: Sequence[str],
    ) -> None:
        """Everything that is not computed on demand only."""
        self.check(atoms)
        self._clock = self.time
        kinds = {model.long_range_options.is_self_consistent for model in self.models}
        self._asks = "polarizability" in asked or self.divide_by_chi or len(kinds) > 1
        if self.displacement_field is not None:
            check_displacement(self, atoms)
            self._conjugate = np.zeros(3)
            self._conjugate = conjugate_field(self, self._atoms_to_batch(atoms), atoms.get_volume())
        field = self.field_at(self._clock)
        undefined: tuple[str, ...] = ("energies", "node_energy")
        if field.any():
            formal = has_formal_charges(self.models)
            undefined += check_field(atoms, field, asked, self.defines_polarization, formal)
            check_screening(atoms, self.divide_by_chi)
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        out, models = self._outputs, self.models
        if self._moved is not None:
            out["dipole"] = moved_back(out, self._moved, models, atoms.numbers)
        factors = self.screening()
        self.results["zero_field_energy"] = zero_field_energy(
            self.results["energy"], out, factors, atoms.pbc, field, self.defines_polarization
        )
        out["dipole"] = out["dipole"] * factors.to(out["dipole"])[:, None]
        if self.num_models > 1:
            self.results |= spread_of_dipoles(out["dipole"])
        electrical = (name for name in ELECTRICAL_OUTPUTS if name in out)
        self.results |= on_host({name: out[name].mean(0) for name in electrical})
        if self.displacement_field is not None:
            add_displacement(self, field, atoms.get_volume())
        if atoms.pbc.all():
            if field.any() and not self.defines_polarization:
                self._act_on_charges(self._atoms_to_batch(atoms))
        elif field.any():
            excess = float(self.results["charges"].sum()) - (self.total_charge(atoms) or 0.0)
            self._say(place_in_field(atoms, excess))
        for name in undefined:
            self.results.pop(name, None)

    def screening(self) -> torch.Tensor:
        """√ε_e of the last structure, [n_models]: see observables.screening_factor."""
        chosen = self.epsilon_infinity, self.divide_by_chi
        return screening(self.models, self._outputs, self._given(None), *chosen)

    def _act_on_charges(self, batch: Any) -> None:
        """Add the forces of the field on the charges of a periodic structure."""
        field = batch["applied_field"]
        forces = torch.stack(
            [
                field_on_charges(m, batch.clone().to_dict(), field, self.epsilon_infinity)
                for m in self.models
            ]
        ).mean(0)
        if self.sum_rule:  # dipoles push nothing as a whole
            forces = forces - forces.mean(0)
        self.results["forces"] = self.results["forces"] + forces.cpu().numpy()

    @property
    def defines_polarization(self) -> bool:
        """Whether periodic structures have a polarization, and an energy in a field."""
        return all(model.long_range_options.defines_polarization for model in self.models)

    def permittivity(self) -> float:
        """ε∞; dipoles and Born charges of periodic structures are multiplied by its root.

        Of several models the mean, and each is multiplied by the root of its own.
        """
        if self.epsilon_infinity is not None:
            return float(self.epsilon_infinity)
        return float(np.mean([model.permittivity() for model in self.models]))

    def check(self, atoms: Atoms, where: str = "atoms") -> None:
        """Refuse what the models cannot evaluate, and say what they assume or have not seen.

        Args:
            atoms: the structure.
            where: what to call it in messages.

        Raises:
            InputError: as structures.check_structure, or a total charge that is not a number.
        """
        first, *others = self.models
        known = self._plans.knows(*numbers_of(atoms))  # its cell has passed already
        check_structure(atoms, where, self.z_table.zs, first.electrostatics, not known)
        check_neutral(self.models, atoms, where)
        for model in () if known else others:
            check_boundary(atoms, where, model.electrostatics)
        constrained = any(m.long_range_options.constrain_charge != "none" for m in self.models)
        if self.total_charge(atoms, where) is None and constrained:
            self._say(
                f"total charge 0 e: nothing given (say it with atoms.info["
                f"'{self.charge_keys()[0]}'], in a command with --total_charge)"
            )
        for model in self.models:
            self._say(model.trained_on.unknown_boundary(atoms.pbc))

    def _say(self, sentence: str | None) -> None:
        """Log a sentence once."""
        if sentence is not None and sentence not in self._said:
            self._said.add(sentence)
            logger.warning(sentence)

    def charge_keys(self) -> list[str]:
        """Names of the total charge: what was asked for, else those of the models' trainings."""
        asked = self._asked_charge_key
        return [asked] if asked else [m.trained_on.total_charge_key for m in self.models]

    def total_charge(self, atoms: Atoms, where: str = "atoms") -> float | None:
        """The total charge that a structure says under the models' names, e; None for none.

        Args:
            atoms: the structure.
            where: what to call it in messages.

        Raises:
            InputError: it is no number, or there are several.
        """
        alone = self._asked_charge_key is not None
        found = {total_charge(atoms, where, key, alone) for key in self.charge_keys()} - {None}
        if len(found) > 1:
            keys = ", ".join(dict.fromkeys(self.charge_keys()))
            raise InputError(f"{where}: info has several total charges, at {keys}; correct them")
        return next(iter(found), None)

    def get_hessian(self, atoms: Atoms | None = None) -> Any:
        """Second derivatives of the energy, eV/Å², as upstream; raises InputError as calculate."""
        if self.displacement_field is not None:
            raise InputError(
                "get_hessian: there is none at a fixed displacement field; take differences of "
                "forces, or set displacement_field to None"
            )
        self.check(self._given(atoms))
        return super().get_hessian(atoms)  # type: ignore[no-untyped-call]

    def _given(self, atoms: Atoms | None) -> Atoms:
        """The structure, or that of the last evaluation."""
        known: Atoms | None = self.atoms if atoms is None else atoms
        if known is None:
            raise InputError("atoms: give a structure")
        return known

    def _atoms_to_batch(self, atoms: Atoms) -> Any:
        self._moved = None
        if self.default_dtype == "float32":
            in_field = self.displacement_field is not None or bool(self.field_at(self._clock).any())
            near = in_single_precision(atoms, in_field, has_formal_charges(self.models))
            atoms, self._moved = near.atoms, near.by
        with own_graphs(self._neighbours):
            batch = super()._atoms_to_batch(atoms)  # type: ignore[no-untyped-call]
        charge = self.total_charge(atoms)
        if charge is not None:  # upstream looks for another key than its training
            batch["total_charge"] = torch.full_like(batch["total_charge"], charge)
        field = self.field_at(self._clock)
        if field.any():
            applied = torch.as_tensor(field, dtype=batch["positions"].dtype, device=self.device)
            batch["applied_field"] = applied.view(1, 3)
            if self.epsilon_infinity is not None:
                batch["epsilon_infinity"] = torch.full_like(applied[0], self.epsilon_infinity)
        cell = batch["cell"]
        plan = self._plans.of(*numbers_of(atoms), cell.device, cell.dtype)
        if plan is not None:
            batch["plan"] = plan
        wanted = self._asks or self.displacement_field is not None
        batch["with_polarizability"] = wanted or bool(field.any())
        return batch

    def _create_result_tensors(
        self, num_models: int, num_atoms: int, batch: Any, out: dict[str, Any]
    ) -> Any:
        """Upstream's table of results [n_models, …], which it fills model by model, and ours."""
        tensors, node_e0 = super()._create_result_tensors(num_models, num_atoms, batch, out)
        tensors["energy"] = torch.zeros(num_models, dtype=torch.float64, device=self.device)
        tensors, self._outputs = with_outputs(tensors, num_models, num_atoms, out)
        return tensors, node_e0
