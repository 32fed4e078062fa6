"""mace-torch's MACELES, a MACE with latent charges, made into a MultipoleMACE.

    E = E_MACE + c/V Σ_{0<|k|≤2π/dl} e^{−σ²k²/2}/k² |Σ_i q_i e^{ik·r_i}|²

of periodic structures, and E_MACE + c/(4π) Σ_ij q_i q_j erf(r_ij/√2σ)/r_ij of open ones, i = j
included in both: latent Ewald summation, npj Comput. Mater. 11, 80 (2025). c is 90.0474 eV Å/e²
where 1/(2 eps0) is 90.4756: charges that are smaller by the root of the ratio have the same energy.
q_i is a sum of readouts, one for each layer, of the form of the layer's energy readout. A file says
all of this in its settings. One that has no counterpart here is refused by its name.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.modules import MultipoleMACE, safe_files
from mace_polmp.modules.pickled_names import POLAR_MACE, class_in
from mace_polmp.units import EPS0
from mace_polmp.upstream.pickled_backbone import PickledBackbone, irreps, text
from mace_polmp.upstream.stand_ins import StandIn, read_tree

_CLASSES = (("mace.modules.models", "MACELES"), ("mace.modules.extensions", "MACELES"))
# By part of a file, settings that enter neither its energies nor its charges, or are read below.
_KNOWN = {
    "les": (
        "n_layers n_hidden add_linear_nn output_scaling_factor remove_mean compute_bec "
        "bec_output_index sigma dl epsilon_factor remove_self_interaction"
    ),
    "les.atomwise": (
        "n_in n_out n_hidden n_layers activation add_linear_nn bias output_scaling_factor"
    ),
    "les.bec": "remove_mean epsilon_factor normalization_factor",
    "les.ewald": "sigma dl sigma_sq_half twopi twopi_sq k_sq_max norm_factor "
    "remove_self_interaction",
    "": (
        "heads compute_bec bec_output_index readout_input_dims lammps_mliap keep_last_layer_irreps "
        "edge_irreps pair_repulsion use_reduced_cg use_so3 use_edge_irreps_first "
        "use_agnostic_product use_last_readout_only apply_cutoff les_output_scale les_kappa_scale "
        "les_alpha_scale alpha_irreps alpha_1o_nonlinear_readout alpha_1o_linear_w_pos "
        "make_alpha_positive make_kappa_positive use_anisotropic_polarizability"
    ),
}
_MODULES = {
    "": (
        "node_embedding radial_embedding spherical_harmonics atomic_energies_fn interactions "
        "products readouts scale_shift pair_repulsion_fn les les_readouts"
    ),
    "les": "atomwise ewald bec",
    "les.atomwise": "",
    "les.bec": "",
    "les.ewald": "",
}
# Charges that are given by element: their scale means nothing where they are off.
_FIXED, _FIXED_SCALE = "use_fixed_atomic_charges", "fixed_atomic_charges_scaling_factor"
_ONLY_CHARGES = (
    "what it does is not certain, and the model is not converted. Only latent charges that are "
    "read from each layer are; there are no reference numbers of dipoles, quadrupoles and responses"
)
_HEAD = ("multipole_readouts.", "electrostatics.", "raw_permittivity")


@dataclass(frozen=True)
class Conversion:
    """A model, and what is worth saying of how it was made.

    Attributes:
        model: the model.
        notes: sentences.
    """

    model: MultipoleMACE
    notes: tuple[str, ...]


def is_own(path: str | Path) -> bool:
    """Whether a pickle says that it holds a MultipoleMACE; nothing of it runs."""
    module, name = class_in(path) or ("", "")
    return module.startswith("mace_polmp.") and name == MultipoleMACE.__name__


def convert(path: str | Path) -> Conversion:
    """A MultipoleMACE with the energies and forces of a MACELES file, nothing of which runs.

    Raises:
        InputError: another file, or settings that have no counterpart.
    """
    found = class_in(path)
    if found is None:
        raise InputError(
            f"{path}: not a model file of mace-torch or mace_polmp (no archive of torch.save)"
        )
    if found[1] == "PolarMACE":
        raise InputError(f"{path}: {POLAR_MACE}")
    if found not in _CLASSES:
        raise InputError(
            f"{path}: holds a {'.'.join(found)}, not a MultipoleMACE or MACELES; only these are "
            "converted. A plain MACE goes to --foundation_model of mace_run_train as it is"
        )
    tree = read_tree(Path(path))
    try:
        return _of_tree(tree, str(path))
    except InputError:
        raise
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(
            f"{path}: holds a MACELES whose parts are not those of a known version ({reason})"
        ) from error


def _of_tree(tree: StandIn, where: str) -> Conversion:
    backbone = PickledBackbone(tree, where)
    _check_parts(backbone)
    scale, electrostatics = _electrostatics(backbone)
    readouts = _charge_readouts(backbone, scale)
    last = readouts[max(readouts)]
    options = LongRangeOptions(
        multipole_lmax=0,
        charge_readout="layers",
        layer_hidden=len(last[0]) if len(last) > 1 else 0,
        induced="none",
        kspace_taper=0.0,
        **electrostatics,
    )
    dtype = str(backbone.tensor("node_embedding.linear.weight").dtype).removeprefix("torch.")
    config = {
        "dtype": dtype,
        "backbone": backbone.configuration(),
        "long_range": asdict(options),
    }
    model = safe_files.constructed(config, where)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(_HEAD)}
    with torch.no_grad():
        used = backbone.fill(state)
        _fill_head(model, readouts)
    left = [n for n in backbone.tensors if n not in used and not n.startswith("les_readouts.")]
    if left:
        raise backbone.refusal(left[0], "there", "the installed mace-torch makes no such tensor")
    model.keep_atomic_energies(backbone.tensor("atomic_energies_fn.atomic_energies"))
    return Conversion(safe_files.rebuilt(model), _notes(backbone, scale))


def _notes(backbone: PickledBackbone, scale: float) -> tuple[str, ...]:
    found = [f"charges are multiplied by {scale:.6f}: energies stay what they were"]
    if backbone.only_scalars:
        found.append(
            f"of the features {text(backbone.irreps_of(0))} of its single layer only the scalars "
            "are kept; nothing reads the others"
        )
    return tuple(found)


def _check_parts(backbone: PickledBackbone) -> None:
    """Refuse settings and modules that are not known, unless they are switched off."""
    for path, known in _KNOWN.items():
        part = backbone.part(path) if path else backbone.tree
        label = f"{path}." if path else ""
        for name, value in _settings(part).items():
            if name in known.split() or value is None or value is False:
                continue
            if isinstance(value, list | tuple | dict) and not value:
                continue
            if name == _FIXED_SCALE and not part.value(_FIXED, False):
                continue
            raise backbone.refusal(f"{label}{name}", _said(value), _ONLY_CHARGES)
        for name, module in part.modules().items():
            if name in _MODULES[path].split() or not (module.tensors() or module.modules()):
                continue
            raise backbone.refusal(f"{label}{name}", "there", _ONLY_CHARGES)


def _settings(part: StandIn) -> dict[str, Any]:
    """The attributes of a module that are not torch's."""
    state = part.state if isinstance(part.state, dict) else {}
    return {n: v for n, v in state.items() if not str(n).startswith("_") and n != "training"}


def _said(value: Any) -> str:
    return f"a {value.name}" if isinstance(value, StandIn) else repr(value)[:80]


def _electrostatics(backbone: PickledBackbone) -> tuple[float, dict[str, Any]]:
    """The factor of charges, and options."""
    les, ewald, bec = (backbone.part(p) for p in ("les", "les.ewald", "les.bec"))

    def number(part: StandIn, label: str, name: str) -> float:
        value = part.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise backbone.refusal(f"{label}.{name}", _said(value), "a positive number is needed")
        return float(value)

    sigma, spacing = number(ewald, "les.ewald", "sigma"), number(ewald, "les.ewald", "dl")
    epsilon = number(les, "les", "epsilon_factor")
    if epsilon < 1.0:
        raise backbone.refusal("les.epsilon_factor", epsilon, "a permittivity is at least 1")
    same = (
        (les, "les", "sigma", sigma),
        (les, "les", "dl", spacing),
        (ewald, "les.ewald", "sigma_sq_half", 0.5 * sigma**2),
        (ewald, "les.ewald", "k_sq_max", (2.0 * math.pi / spacing) ** 2),
        (bec, "les.bec", "normalization_factor", math.sqrt(epsilon)),
    )
    for part, label, name, expected in same:
        value = number(part, label, name)
        if not math.isclose(value, expected, rel_tol=1e-6):
            raise backbone.refusal(f"{label}.{name}", value, f"from other settings {expected:g}")
    removed = ewald.value("remove_self_interaction")
    if not isinstance(removed, bool):
        raise backbone.refusal(
            "les.ewald.remove_self_interaction", _said(removed), "must be True or False"
        )
    if les.value("remove_self_interaction", removed) != removed:
        raise backbone.refusal(
            "les.remove_self_interaction", not removed, f"les.ewald says {removed}"
        )
    factor = number(ewald, "les.ewald", "norm_factor")
    output = backbone.tree.value("les_output_scale", 1.0)
    if isinstance(output, bool) or not isinstance(output, int | float):
        raise backbone.refusal("les_output_scale", _said(output), "a number is needed")
    options = {
        "smearing": sigma,
        "kspace_spacing": spacing,
        "self_interaction": not removed,
        "epsilon_infinity": epsilon,
    }
    return math.sqrt(2.0 * EPS0 * factor) * float(output), options


def _charge_readouts(backbone: PickledBackbone, scale: float) -> dict[int, tuple[Tensor, ...]]:
    """By layer, the matrices [n_out, n_in] of its readout, with silu between two.

    A model with one readout reads the last layer.
    """
    parts = list(backbone.part("les_readouts").modules().values())
    n_layers = backbone.n_layers
    if len(parts) not in (1, n_layers):
        raise backbone.refusal("les_readouts", f"{len(parts)} readouts", "one for each layer")
    found: dict[int, tuple[Tensor, ...]] = {}
    for number, part in enumerate(parts):
        label = f"les_readouts.{number}"
        is_last = number == len(parts) - 1
        layer = n_layers - 1 if is_last else number
        scalars = sum(mul for mul, degree, p in backbone.irreps_of(layer) if (degree, p) == (0, 1))
        names = ["linear"]
        if is_last and n_layers > 1 and part.name == "NonLinearReadoutBlock":
            names = ["linear_1", "linear_2"]
        elif part.name != "LinearReadoutBlock":
            raise backbone.refusal(label, part.name, "this form of a readout is not known")
        matrices, width = [], scalars
        for name in names:
            matrices.append(_matrix(backbone, f"{label}.{name}", width))
            width = len(matrices[-1])
        if width != 1:
            raise backbone.refusal(label, f"of {width} numbers", "one charge is expected")
        if len(names) > 1:
            path = f"{label}.non_linearity.acts.0"
            matrices[1] = matrices[1] * float(backbone.part(path).value("cst"))
        matrices[-1] = matrices[-1] * scale
        found[layer] = tuple(matrices)
    return found


def _matrix(backbone: PickledBackbone, path: str, n_in: int) -> Tensor:
    """The matrix [n_out, n_in] of e3nn's Linear between scalars, its factor included."""
    module, where = backbone.part(path), backbone.where
    before = irreps(module.value("irreps_in"), where)
    after = irreps(module.value("irreps_out"), where)
    given = sum(mul for mul, degree, p in before if (degree, p) == (0, 1))
    weight = backbone.tensor(f"{path}.weight")
    bias = module.tensors().get("bias")
    scalars_only = len(after) == 1 and after[0][1:] == (0, 1)
    fits = scalars_only and given == n_in and weight.numel() == n_in * after[0][0]
    if not fits or (bias is not None and bias.numel() > 0):
        raise backbone.refusal(
            path, f"{text(before)} to {text(after)}", f"a map of {n_in} scalars without bias"
        )
    return weight.double().view(n_in, after[0][0]).t() / math.sqrt(n_in)


def _fill_head(model: MultipoleMACE, readouts: dict[int, tuple[Tensor, ...]]) -> None:
    """Give a new model the charge readouts; what it has beside them starts at zero."""
    own = model.multipole_readouts
    own.rescale(0.0)
    assert own.layers is not None
    for layer, matrices in readouts.items():
        part = own.layers.parts[layer]
        linears = [part] if isinstance(part, torch.nn.Linear) else [part[0], part[2]]  # type: ignore[index]
        for linear, matrix in zip(linears, matrices, strict=True):
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.copy_(matrix)
