"""The configuration of a MACE from its pickle, read as stand-ins: what its constructor was given.

As safe_files.describe has it of a model that is there; that one is then made by the installed
mace-torch, and the file's tensors must fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from e3nn.math import normalize2mom
from mace.modules import interaction_classes
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.upstream.stand_ins import StandIn

SILU = ("torch.nn.functional", "silu")
# Modules with activations that are a matter of choice; others have those of their class.
_CHOSEN = ("readouts.", "conv_tp_weights.")
_ACTIVATIONS = (SILU, ("torch.nn.modules.activation", "SiLU"))
# Settings that are attributes of the model, with what they are where a file does not say.
_FLAGS = {
    "use_reduced_cg": False,
    "use_so3": False,
    "use_edge_irreps_first": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "apply_cutoff": True,
}
# Coupling coefficients, which files have inside e3nn's programs; the constructor makes the same.
_COMPILED = "._compiled_main"
_ZEROED = "_zeroed"  # flags that earlier versions of mace-torch lack; the constructor sets them


class PickledBackbone:
    """The backbone of a pickled model.

    Args:
        tree: the model.
        where: the file, for messages.

    Attributes:
        tensors: of the whole model, by name.
        only_scalars: a single layer has more than scalars in the file, which nothing reads;
            mace-torch gives a single layer scalars only.
    """

    def __init__(self, tree: StandIn, where: str) -> None:
        self.tree, self.where = tree, where
        self.tensors = tree.tensors()
        self._layers = list(self.part("interactions").modules().values())
        self._products = list(self.part("products").modules().values())
        self.only_scalars = len(self._products) == 1 and len(self.irreps_of(0)) > 1

    def refusal(self, name: str, value: Any, remedy: str) -> InputError:
        """Of a setting that has no counterpart."""
        return InputError(f"{self.where}: {name} is {value}: {remedy}")

    def part(self, path: str) -> StandIn:
        """A module by its name in the model.

        Raises:
            InputError: it has none of this name.
        """
        found: Any = self.tree
        for name in path.split("."):
            found = found.value(name) if isinstance(found, StandIn) else None
        if not isinstance(found, StandIn):
            raise InputError(
                f"{self.where}: the model has no {path}; is it one of another version?"
            )
        return found

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name.

        Raises:
            InputError: there is none of this name.
        """
        if name not in self.tensors:
            raise InputError(
                f"{self.where}: the model has no {name}; is it one of another version?"
            )
        return self.tensors[name]

    def irreps_of(self, layer: int) -> list[tuple[int, int, int]]:
        """Multiplicity, degree and parity of a layer's features."""
        return irreps(self._products[layer].value("linear").value("irreps_out"), self.where)

    @property
    def n_layers(self) -> int:
        """Number of interaction layers."""
        return len(self._layers)

    def configuration(self) -> dict[str, Any]:
        """What the constructor needs, as safe_files.describe has it.

        Raises:
            InputError: a setting that cannot be honoured, by its name.
        """
        self._check()
        tree, radial = self.tree, self.part("radial_embedding")
        last = list(self.part("readouts").modules().values())[-1]
        hidden = last.value("hidden_irreps")
        layer_irreps = [self.irreps_of(n) for n in range(self.n_layers)]
        features = layer_irreps[0][:1] if self.only_scalars else layer_irreps[0]
        transform = radial.value("distance_transform")
        edge_irreps = tree.value("edge_irreps")
        return {
            "r_max": float(self.tensor("r_max")),
            "num_bessel": self.tensor("radial_embedding.bessel_fn.bessel_weights").numel(),
            "num_polynomial_cutoff": self.tensor("radial_embedding.cutoff_fn.p").item(),
            "max_ell": int(self.part("spherical_harmonics").value("_lmax")),
            "interaction_cls": self._layers[-1].name,
            "interaction_cls_first": self._layers[0].name,
            "num_interactions": self.n_layers,
            "num_elements": self.tensor("atomic_numbers").numel(),
            "hidden_irreps": text(features),
            "edge_irreps": None if edge_irreps is None else text(irreps(edge_irreps, self.where)),
            "MLP_irreps": "1x0e" if hidden is None else text(irreps(hidden, self.where)),
            "gate": "silu" if hidden is not None else "None",
            **{name: bool(tree.value(name, default)) for name, default in _FLAGS.items()},
            "use_embedding_readout": False,
            "readout_cls": last.name,
            "atomic_energies": self.tensor("atomic_energies_fn.atomic_energies").double().tolist(),
            "avg_num_neighbors": float(self._layers[0].value("avg_num_neighbors")),
            "atomic_numbers": [int(z) for z in self.tensor("atomic_numbers")],
            "correlation": self._correlation(),
            "radial_type": "bessel",
            "embedding_specs": None,
            "radial_MLP": [int(width) for width in self._layers[0].value("radial_MLP", [])],
            "pair_repulsion": tree.value("pair_repulsion_fn") is not None,
            "distance_transform": None if transform is None else _TRANSFORMS[transform.name],
            "atomic_inter_scale": self.tensor("scale_shift.scale").double().tolist(),
            "atomic_inter_shift": self.tensor("scale_shift.shift").double().tolist(),
            "heads": [str(name) for name in tree.value("heads", ["Default"])],
            "keep_last_layer_irreps": self.n_layers > 1 and layer_irreps[-1] == layer_irreps[0],
        }

    def _correlation(self) -> int:
        found = set()
        for layer in range(self.n_layers):
            path = f"products.{layer}.symmetric_contractions.contractions.0.weights"
            found.add(len(self.part(path).tensors()) + 1)
        if len(found) > 1:
            raise self.refusal("correlation", sorted(found), "layers must have the same")
        return int(found.pop())

    def _check(self) -> None:
        """Refuse what mace-torch cannot make again from a configuration."""
        tree, radial = self.tree, self.part("radial_embedding")
        heads = tree.value("heads", ["Default"])
        if len(heads) != 1:
            raise self.refusal(
                "heads", heads, "charges would depend on the head; save a model with one of them"
            )
        if tree.value("joint_embedding") is not None:
            raise self.refusal("joint_embedding", "there", "embedded features are not converted")
        for name in ("cueq_config", "oeq_config"):
            if tree.value(name) is not None or self._layers[0].value(name) is not None:
                raise self.refusal(
                    name, "there", "convert the model that it was made from, without accelerator"
                )
        basis = radial.value("bessel_fn")
        if basis.name != "BesselBasis":
            raise self.refusal("radial_type", basis.name, "only bessel is converted")
        for layer in self._layers:
            if layer.name not in interaction_classes:
                raise self.refusal("interaction", layer.name, "the installed mace-torch lacks it")
            for name in ("avg_num_neighbors", "radial_MLP"):
                one, other = layer.value(name), self._layers[0].value(name)
                if one != other:
                    raise self.refusal(name, f"{other} and {one}", "layers must have the same")
        names = {layer.name for layer in self._layers[1:]}
        if len(names) > 1:
            raise self.refusal("interaction", sorted(names), "layers must have the same")
        check_activations(tree, self.where)

    def fill(self, state: Mapping[str, Tensor]) -> set[str]:
        """Copy the file's tensors to those of a model that was made of the configuration.

        Args:
            state: of the model, without what is not the backbone's.

        Returns:
            The names in the file that have been used, or that nothing needs.

        Raises:
            InputError: tensors that are missing or do not fit.
        """
        used = set()
        for name, own in state.items():
            if _COMPILED in name or (name.endswith(_ZEROED) and name not in self.tensors):
                continue
            given = self.tensor(name)
            if self.only_scalars and given.shape != own.shape:
                given = self._scalars(name, given, own)
            if given.shape != own.shape:
                raise self.refusal(
                    name,
                    f"{list(given.shape)}",
                    f"the installed mace-torch makes {list(own.shape)} of these settings",
                )
            own.copy_(given)
            used.add(name)
        if self.only_scalars:
            start = "products.0.symmetric_contractions.contractions."
            used |= {n for n in self.tensors if n.startswith(start) and n not in state}
        return used

    def _scalars(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """The scalars' part of a tensor of the single layer: its first numbers."""
        if name.endswith("output_mask"):
            return own
        if name == "products.0.linear.weight" and given.numel() > own.numel():
            return given.flatten()[: own.numel()].view(own.shape)
        return given


_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def irreps(stand_in: Any, where: str) -> list[tuple[int, int, int]]:
    """Multiplicity, degree and parity of each part of e3nn's irreps.

    Raises:
        InputError: it is none.
    """
    try:
        return [
            (int(mul), *(int(n) for n in _unwrapped(irrep)))  # type: ignore[misc]
            for mul, irrep in (_unwrapped(part) for part in _unwrapped(stand_in))
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: irreps that cannot be read ({error})") from error


def text(parts: list[tuple[int, int, int]]) -> str:
    """As e3nn writes them, such as 64x0e+64x1o."""
    return "+".join(f"{mul}x{degree}{'e' if p == 1 else 'o'}" for mul, degree, p in parts)


def _unwrapped(stand_in: StandIn) -> tuple[Any, ...]:
    """The members of a pickled subclass of tuple."""
    found = stand_in.arguments
    if len(found) == 1 and isinstance(found[0], tuple):
        found = found[0]
    return found


def check_activations(tree: StandIn, where: str) -> None:
    """Refuse activations that are not silu with the factor of the installed e3nn.

    Raises:
        InputError: names it.
    """
    expected = float(normalize2mom(torch.nn.functional.silu).cst)
    for path, module in walk(tree):
        if module.name == "normalize2mom" and any(part in path for part in _CHOSEN):
            function, factor = module.value("f"), module.value("cst")
            found = (getattr(function, "module", None), getattr(function, "name", None))
            if found not in _ACTIVATIONS:
                raise InputError(f"{where}: {path} is {found[1]}: only silu is converted")
            if not isinstance(factor, float) or abs(factor - expected) > 1e-6:
                raise InputError(f"{where}: {path} has the factor {factor}, e3nn has {expected}")


def walk(tree: StandIn, path: str = "") -> list[tuple[str, StandIn]]:
    """A module and all in it, with their names."""
    found = [(path, tree)]
    for name, module in tree.modules().items():
        found += walk(module, f"{path}.{name}".lstrip("."))
    return found
