"""e3nn's TorchScript, compiled once in each process of the tests.

Every new model compiles the code that e3nn writes for its products, and every copy of a model and
every one from a file reads that code and optimizes it anew, which takes longer than what most
tests do with the model. Models of the same irreps have the same code.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from e3nn.util.codegen import _mixin
from torch import fx

_compiled: dict[Any, torch.jit.ScriptModule] = {}
_loaded: dict[bytes, torch.jit.ScriptModule] = {}
_jitable = _mixin.jitable
_set_state = _mixin.CodeGenMixin.__setstate__


def _constant(graph: fx.GraphModule, name: str) -> Any:
    tensor = graph.get_parameter(name) if name in graph._parameters else graph.get_buffer(name)
    return str(tensor.dtype), tuple(tensor.shape), tensor.detach().cpu().numpy().tobytes()


def _key(graph: fx.GraphModule) -> Any:
    """Code and constants, or None where there is more to it."""
    if any(node.op == "call_module" for node in graph.graph.nodes):
        return None
    names = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
    try:
        constants = tuple((name, _constant(graph, name)) for name in names)
    except (AttributeError, NotImplementedError):  # no tensor, or one on the meta device
        return None
    return graph.code, constants, torch.get_default_dtype()


def jitable(graph: fx.GraphModule) -> torch.nn.Module:
    """A copy of what was compiled from the same code before; with its own constants."""
    key = _key(graph)
    if key is None:
        return _jitable(graph)
    if key not in _compiled:
        _compiled[key] = torch.jit.script(_jitable(graph))
    return copy.deepcopy(_compiled[key])


def set_state(self: Any, state: dict[str, Any]) -> None:
    """As e3nn's own, with a copy of what was read from the same bytes before."""
    compiled = state.get("__codegen__")
    _set_state(self, {name: value for name, value in state.items() if name != "__codegen__"})
    if compiled is not None:
        for name, code in compiled.items():
            if code not in _loaded:
                _loaded[code] = torch.jit.load(io.BytesIO(code))
            setattr(self, name, copy.deepcopy(_loaded[code]))
        self.__codegen__ = list(compiled)


def use() -> None:
    """From now on; what e3nn makes of it, torch.jit.script, leaves compiled modules as they are."""
    _mixin.jitable = jitable
    _mixin.CodeGenMixin.__setstate__ = set_state
