"""Starting from a trained model: what is carried over, and how small the head starts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sized
from dataclasses import fields
from typing import Any

import torch
from mace.tools import torch_geometric
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.graph import Graph

Data = dict[str, Tensor]

# Before the first step energies and forces may differ from the foundation model's by this much.
_ENERGY = 3e-4  # eV/atom
_FORCE = 2e-3  # eV/Å, largest component
_CARRIED = 1e-3  # eV/atom; more than rounding, less than anything that matters
_MOST_STRUCTURES, _MOST_ATOMS = 16, 2000
_SHARED = (
    "charge_readout",
    "formal_charges",
    "layer_hidden",
    "smearing",
    "kspace_spacing",
    "kspace_taper",
    "self_interaction",
    "constrain_charge",
)


def sample(
    dataset: Any, most_atoms: int = _MOST_ATOMS, most_structures: int = _MOST_STRUCTURES
) -> list[Data]:
    """Some structures of a training set, one per batch dictionary, on the CPU.

    Args:
        dataset: what upstream's loader reads from.
        most_atoms: in all of them together, but for a first one that is larger.
        most_structures: how many of them.
    """
    assert isinstance(dataset, Sized)
    step = max(1, len(dataset) // most_structures)
    out: list[Data] = []
    atoms = 0
    for index in range(0, len(dataset), step):
        graph = dataset[index]  # type: ignore[index]
        atoms += graph.num_nodes
        if len(out) == most_structures or (out and atoms > most_atoms):
            break
        out.append(torch_geometric.Batch.from_data_list([graph]).to_dict())
    return out


def inherit(options: dict[str, Any], foundation: MultipoleMACE | None) -> LongRangeOptions:
    """The head's settings: what was asked for, else the foundation model's, else the defaults.

    Args:
        options: settings that were asked for.
        foundation: a MultipoleMACE to continue from, or None.

    Raises:
        InputError: a setting that is not valid, or one that would change what the foundation model
            has learned.
    """
    if foundation is None:
        return LongRangeOptions(**options)
    old = foundation.long_range_options
    inherited = {f.name: getattr(old, f.name) for f in fields(old)}
    new = LongRangeOptions(**(inherited | options))
    terms = (("multipole_lmax", new.multipole_lmax < old.multipole_lmax),)
    terms += (("induced", old.induces_charges and not new.induces_charges),)
    terms += (("induced", old.induces_dipoles and not new.induces_dipoles),)
    terms += (("induced", old.induces_bonds and not new.induces_bonds),)
    terms += (("response", old.is_self_consistent and not new.is_self_consistent),)
    for name, lost in terms:
        if lost:
            raise InputError(
                f"--{name} {getattr(new, name)}: the foundation model has "
                f"{getattr(old, name)}, and what it has learned would be lost; leave the flag out"
            )
    shared = list(_SHARED)
    if old.induces_dipoles and old.polarizability == "anisotropic":
        shared.append("polarizability")
    if old.formal_charges:  # which are divided by its square root
        shared.append("epsilon_infinity")
    for name in shared:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            raise InputError(
                f"--{name} {after}: the foundation model has {before}, and its energies would "
                "change; leave the flag out"
            )
    if new.constrain_charge == "softness" and new.induces_charges and not old.induces_charges:
        raise InputError(
            f"--induced {new.induced}: the softness of the foundation model spreads its total "
            "charge and knows nothing of induced charges; leave the flag out, or ask for induced "
            "dipoles only"
        )
    same_response = old.is_self_consistent == new.is_self_consistent  # else energies do change
    if old.conserves_charge != new.conserves_charge and old.induces_charges and same_response:
        raise InputError(
            "--conserve_charge: the foundation model was trained "
            f"{'with' if old.conserves_charge else 'without'} it, and its energies would change; "
            "give the same"
        )
    return new


def check_cutoff(r_max: float, foundation: torch.nn.Module) -> None:
    """Refuse a cutoff that is not the foundation model's.

    Raises:
        InputError: they differ.
    """
    own = float(foundation.r_max)
    if abs(own - r_max) > 1e-6:
        raise InputError(
            f"--r_max {r_max:g}: the foundation model has a cutoff of {own:g} Å, which its "
            "weights belong to; leave the flag out"
        )


def check_carried_over(
    backbone: torch.nn.Module, foundation: torch.nn.Module, batches: Iterable[Data]
) -> None:
    """Compare the interaction energies of a foundation model and what was made of it.

    Raises:
        InputError: they differ by more than rounding.
    """
    dtype = next(backbone.parameters()).dtype
    reference = copy.deepcopy(foundation).to(device="cpu", dtype=dtype)
    largest = 0.0
    for data in batches:
        other = _seen_by(reference, backbone, data)
        with torch.no_grad():
            energies = [
                model(dict(inputs), compute_force=False)["interaction_energy"]
                for model, inputs in ((backbone, data), (reference, other))
            ]
        difference = (energies[0] - energies[1]).abs().max() / len(data["positions"])
        largest = max(largest, float(difference))
    logging.info(
        "Foundation model carried over: interaction energies differ by at most "
        f"{1e3 * largest:.4f} meV/atom"
    )
    if largest > _CARRIED:
        raise InputError(
            f"--foundation_model: mace-torch carried the model over with energies that differ by "
            f"{1e3 * largest:.1f} meV/atom; this architecture cannot be fine-tuned with the "
            "installed version of mace-torch"
        )


def start_small(model: MultipoleMACE, batches: list[Data]) -> float:
    """Scale a new head until its energies and forces are negligible, and no further.

    Without a constraint on charges their mean is taken off first: the sum of charges that start as
    electronegativities need not be zero.

    Returns:
        The factor by which multipoles were scaled down.
    """
    readouts = model.multipole_readouts
    if model.long_range_options.constrain_charge == "none":
        charges = [model.read_multipoles(data)[1].charge for data in batches]
        with torch.no_grad():
            readouts.element_bias[:, 0] -= torch.cat(charges).mean()
    else:  # charges that have to be there are no start
        batches = [d | {"total_charge": torch.zeros_like(d["total_charge"])} for d in batches]
    total = 1.0
    energy, force = _effect(model, None, batches)
    for _ in range(8):
        excess = max(energy / _ENERGY, force / _FORCE)
        if excess <= 1.0:
            break
        scale = 0.8 * min(1.0, excess**-0.5)
        readouts.rescale(scale)
        total *= scale
        energy, force = _effect(model, None, batches)
    _log_start(energy, force)
    return total


class Growth:
    """Lets a head that was scaled down grow to its natural size, a little with each step.

    A trained backbone leaves nothing for the head to explain: next to zero, multipoles have no
    gradient to speak of and stay there. While the head grows, its parameters are not trained, and
    the backbone hands over to it what it had learned of electrostatics.

    Args:
        model: with a head that was scaled.
        scaled: by this factor.
        steps: in which it grows back.
        left: how many of them are still to come, where a training was interrupted.
    """

    def __init__(self, model: MultipoleMACE, scaled: float, steps: int, left: int) -> None:
        self._readouts = model.multipole_readouts
        self._factor = scaled ** (-1.0 / max(steps, 1))
        self._left = left

    def __call__(self, *_: Any) -> None:
        """After a step of the optimizer."""
        if self._left > 0:
            self._left -= 1
            self._readouts.rescale(self._factor)


def start_from(model: MultipoleMACE, foundation: MultipoleMACE, batches: list[Data]) -> None:
    """Give a model the head of another, new terms of which start without effect."""
    readouts = model.multipole_readouts
    readouts.take_over(foundation.multipole_readouts, foundation.atomic_numbers.tolist())
    now, before = model.long_range_options, foundation.long_range_options
    new = ["softness"] if now.induces_charges and not before.induces_charges else []
    if now.induces_dipoles and not before.induces_dipoles:
        new.append("polarizability")
    if now.induces_bonds and not before.induces_bonds:
        new.append("bond_softness")
    if isinstance(model.long_range_options.epsilon_infinity, str):
        model.head.set_permittivity(foundation.permittivity())
    reference = copy.deepcopy(foundation).to(next(model.parameters()).dtype).to("cpu")
    for _ in range(12):
        energy, force = _effect(model, reference, batches)
        if not new or max(energy / _ENERGY, force / _FORCE) <= 1.0:
            break
        readouts.weaken(new)
    _log_start(energy, force)


def _effect(
    model: MultipoleMACE, reference: MultipoleMACE | None, batches: list[Data]
) -> tuple[float, float]:
    """Largest long-range energy per atom and force, or what they differ from a reference by."""
    energy = force = 0.0
    for data in batches:
        found, forces = _long_range(model, data)
        if reference is not None:
            before = _long_range(reference, _seen_by(reference, model, data))
            found, forces = found - before[0], forces - before[1]
        energy = max(energy, float(found.abs().max()) / len(forces))
        force = max(force, float(forces.abs().max()))
    return energy, force


def _seen_by(foundation: torch.nn.Module, model: torch.nn.Module, data: Data) -> Data:
    """Data of a model as its foundation model takes them: all of its elements, its one head."""
    known = foundation.atomic_numbers.tolist()
    columns = torch.tensor([known.index(z) for z in model.atomic_numbers.tolist()])
    attrs = data["node_attrs"]
    wide = attrs.new_zeros(len(attrs), len(known)).index_copy(1, columns, attrs)
    return dict(data, node_attrs=wide, head=torch.zeros_like(data["head"]))


def _long_range(model: MultipoleMACE, data: Data) -> tuple[Tensor, Tensor]:
    data = dict(data)
    data["positions"] = positions = data["positions"].detach().clone().requires_grad_(True)
    energy = model.long_range(Graph.of(data))[1].energy
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -gradient


def _log_start(energy: float, force: float) -> None:
    logging.info(
        "Long-range head: before the first step it changes energies by at most "
        f"{1e3 * energy:.3f} meV/atom and forces by at most {1e3 * force:.3f} meV/Å"
    )


def keep_one_head(model: MultipoleMACE, name: str | None, remove: Any) -> MultipoleMACE:
    """A MultipoleMACE with one of its heads; the electrostatics belongs to all.

    Args:
        model: with several heads.
        name: of the head to keep, or None for the first that is not of replay data.
        remove: upstream's function for the backbone.
    """
    backbone = remove(model.short_range(), name)
    out = MultipoleMACE.from_mace(backbone, model.long_range_options)
    out.multipole_readouts = model.multipole_readouts
    out.trained_on = model.trained_on
    if hasattr(model, "raw_permittivity"):
        out.raw_permittivity = model.raw_permittivity
    return out


def freeze_the_rest(model: torch.nn.Module, groups: list[dict[str, Any]]) -> None:
    """No gradients of parameters that no optimizer knows.

    Upstream makes such of a foundation model's radial basis. Nobody would set their gradients to
    zero: they would grow with every step, and with them the norm that gradients are clipped by.
    """
    for group in groups:
        group["params"] = list(group["params"])
    known = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in model.parameters():
        if id(parameter) not in known:
            parameter.requires_grad_(False)
