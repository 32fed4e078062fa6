"""A pickled model of mace-torch read as a tree of data: nothing of the file runs.

An archive of torch.save holds a pickle, a small program that names functions and classes and calls
them. Here every name is looked up in a list: the few functions that make tensors and containers
are ours, classes of mace-torch, e3nn and others are stand-ins that hold what the file says of them
and can do nothing. A name that is not in the list ends the reading. Programs that e3nn keeps in its
modules stay bytes.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.modules.pickled_names import record, root_of

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
# By module, classes and functions that stand-ins are made for; what they are for is in maceles.py.
_STAND_INS = {
    "e3nn.math._normalize_activation": "normalize2mom",
    "e3nn.nn._activation": "Activation",
    "e3nn.nn._extract": "Extract ExtractIr",
    "e3nn.nn._fc": "FullyConnectedNet _Layer",
    "e3nn.nn._gate": "Gate _Sortcut",
    "e3nn.o3._irreps": "Irrep Irreps _MulIr",
    "e3nn.o3._linear": "Instruction Linear",
    "e3nn.o3._spherical_harmonics": "SphericalHarmonics",
    "e3nn.o3._tensor_product._instruction": "Instruction",
    "e3nn.o3._tensor_product._sub": (
        "ElementwiseTensorProduct FullTensorProduct FullyConnectedTensorProduct TensorSquare"
    ),
    "e3nn.o3._tensor_product._tensor_product": "TensorProduct",
    "les.les": "Les _DummyAtomwise",
    "les.module.atomwise": "Atomwise",
    "les.module.bec": "BEC",
    "les.module.ewald": "Ewald",
    "mace.modules.blocks": (
        "AtomicEnergiesBlock EquivariantProductBasisBlock GeneralNonLinearBiasReadoutBlock "
        "LinearLesReadoutBlock LinearNodeEmbeddingBlock LinearReadoutBlock "
        "NonLinearBiasReadoutBlock NonLinearLesReadoutBlock NonLinearReadoutBlock "
        "RadialEmbeddingBlock RealAgnosticAttResidualInteractionBlock "
        "RealAgnosticDensityInteractionBlock RealAgnosticDensityResidualInteractionBlock "
        "RealAgnosticInteractionBlock RealAgnosticResidualInteractionBlock "
        "RealAgnosticResidualNonLinearInteractionBlock ScaleShiftBlock"
    ),
    "mace.modules.embeddings": "GenericJointEmbedding",
    "mace.modules.extensions": "MACELES",
    "mace.modules.gate": "GatedEquivariantBlock",
    "mace.modules.irreps_tools": "reshape_irreps",
    "mace.modules.models": "MACELES",
    "mace.modules.radial": (
        "AgnesiTransform BesselBasis ChebychevBasis GaussianBasis PolynomialCutoff RadialMLP "
        "SoftTransform ZBLBasis"
    ),
    "mace.modules.symmetric_contraction": "Contraction EmptyParam SymmetricContraction",
    "mace.modules.wrapper_ops": "CuEquivarianceConfig OEQConfig",
    "torch": "device dtype sigmoid tanh",
    "torch.fx._symbolic_trace": "Tracer",
    "torch.fx.graph": "CodeGen",
    "torch.fx.graph_module": "reduce_graph_module",
    "torch.nn.functional": "sigmoid silu tanh",
    "torch.nn.modules.activation": "SiLU",
    "torch.nn.modules.container": "ModuleDict ModuleList ParameterDict ParameterList Sequential",
    "torch.nn.modules.linear": "Identity Linear",
    "torch.nn.modules.normalization": "LayerNorm",
}


class Refused(pickle.UnpicklingError):
    """Something in a pickle that is not read."""


class _Held:
    """A tensor of the file, which nothing in it can change: tensors have methods that pickles call.

    Attributes:
        tensor: the tensor.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise Refused("the state of a tensor")


class StandIn:
    """An object of the file: what it was made with, and its state.

    Attributes:
        module, name: of its class.
        arguments: it was made with.
        state: of a module, its dictionary.
        items: of a container.
    """

    module = name = ""
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *arguments: Any, **_: Any) -> StandIn:
        found = object.__new__(cls)
        found.arguments, found.state, found.items = arguments, {}, []
        return found

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is done with the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Of pickled lists."""
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        """Of pickled lists."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def value(self, name: str, default: Any = None) -> Any:
        """An attribute: parameters, buffers and modules included."""
        state = self.state if isinstance(self.state, dict) else {}
        for group in ("_modules", "_parameters", "_buffers"):
            members = state.get(group)
            if isinstance(members, dict) and name in members:
                return _free(members[name])
        return _free(state.get(name, default))

    def modules(self) -> dict[str, StandIn]:
        """The modules in it, by name."""
        found = self.state.get("_modules", {}) if isinstance(self.state, dict) else {}
        found = found if isinstance(found, dict) else {}
        return {str(k): v for k, v in found.items() if isinstance(v, StandIn)}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers by their names in the state of a module, as torch has them."""
        found: dict[str, Tensor] = {}
        state = self.state if isinstance(self.state, dict) else {}
        for group in ("_parameters", "_buffers"):
            members = state.get(group)
            for name, tensor in (members if isinstance(members, dict) else {}).items():
                if isinstance(tensor, _Held):
                    found[f"{prefix}{name}"] = tensor.tensor
        for name, module in self.modules().items():
            found |= module.tensors(f"{prefix}{name}.")
        return found


def _free(value: Any) -> Any:
    return value.tensor if isinstance(value, _Held) else value


class _Function:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("the state of a function")

    def __setstate__(self, state: Any) -> None:
        raise Refused("the state of a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in found):
        raise Refused(f"a tensor of shape or place {found!r}")
    return found


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    """A tensor from numbers of the archive, which must have as many as it needs."""
    if not isinstance(storage, _Held):
        raise Refused("a tensor without numbers")
    numbers = storage.tensor
    (offset,), size, stride = _whole_numbers([offset]), _whole_numbers(size), _whole_numbers(stride)
    if len(size) != len(stride):
        raise Refused(f"a tensor of shape {size} with strides {stride}")
    count = 1
    for length in size:
        count *= length
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count > numbers.numel() or (count > 0 and last >= numbers.numel()):
        raise Refused(f"a tensor of shape {size} from {numbers.numel()} numbers")
    return _Held(torch.as_strided(numbers, size, stride, offset).clone())


def _parameter(data: Any, *_: Any) -> _Held:
    if not isinstance(data, _Held):
        raise Refused("a parameter that is no tensor")
    return data


def _bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _numpy_number(dtype: Any, data: Any = b"") -> float | int:
    """A number that numpy wrote."""
    kinds = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}
    kind = dtype.arguments[0] if isinstance(dtype, StandIn) and dtype.arguments else None
    if kind not in kinds or not isinstance(data, bytes):
        raise Refused(f"a number of numpy's type {kind!r}")
    found: float | int = struct.unpack("<" + kinds[kind], data)[0]
    return found


def _functions() -> dict[tuple[str, str], Any]:
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("collections", "OrderedDict"): lambda *pairs: OrderedDict(*pairs),
        ("_codecs", "encode"): _bytes,
        ("torch", "Size"): lambda values=(): tuple(values),
    }
    for module in ("builtins", "__builtin__"):
        functions[module, "set"] = lambda values=(): list(values)
        functions[module, "frozenset"] = lambda values=(): list(values)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        functions[module, "scalar"] = _numpy_number
    return {name: _Function(function) for name, function in functions.items()}


class _Reader(pickle.Unpickler):
    """Unpickles with the names of the lists above only."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root
        self._kept: dict[str, Tensor] = {}
        self._found: dict[tuple[str, str], Any] = _functions()
        names = [(module, name) for module, text in _STAND_INS.items() for name in text.split()]
        for module, name in [*names, ("numpy", "dtype")]:
            self._found[module, name] = type(name, (StandIn,), {"module": module, "name": name})

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file."""
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in self._found:
            raise Refused(f"{module}.{name}")
        return self._found[module, name]

    def persistent_load(self, pid: Any) -> _Held:
        """Numbers of the archive."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Refused(f"a reference to {pid!r}")
        _, kind, key, _, count = pid
        if kind not in _STORAGES or not isinstance(key, str) or not isinstance(count, int):
            raise Refused(f"numbers of the kind {kind!r}")
        if key not in self._kept:
            dtype = _STORAGES[kind]
            data = record(self._archive, f"{self._root}/data/{key}")
            if len(data) != count * dtype.itemsize:
                raise Refused(f"{count} numbers in {len(data)} bytes")
            empty = torch.empty(0, dtype=dtype)
            self._kept[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else empty
        return _Held(self._kept[key])


def read_tree(path: Path) -> StandIn:
    """The object that an archive of torch.save holds, as a tree of stand-ins; nothing runs.

    Raises:
        InputError: a file of another kind, or one that names what is not in the list.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Reader(archive, root_of(archive)).load()
    except Refused as error:
        raise InputError(
            f"{path}: holds {error}, which no MACELES model needs and which is not loaded; nothing "
            "of the file was run. If it comes from another version of mace-torch or e3nn, say so "
            "in an issue, with this line"
        ) from error
    except Exception as error:  # a pickle that is none can end in any error
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a whole archive of torch.save ({reason})") from error
    if not isinstance(found, StandIn):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a model")
    return found
