"""The evaluation of a model as one compiled function, for molecular dynamics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy, deepcopy
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from e3nn import get_optimization_defaults, set_optimization_defaults
from mace.tools.compile import simplify
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from mace_polmp.electrostatics.products import full_precision
from mace_polmp.errors import InputError
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.model import MultipoleMACE
from mace_polmp.modules.safe_files import rebuilt

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of torch.compile."""

_MOST_KINDS = 16
"""Structures of so many kinds (atoms, boundary conditions, sizes of the k-space sums) get a
compiled function of their own; compiling takes minutes, and further ones are evaluated as usual."""

# What backbone and head read of a batch; other entries would have to be the same in every step.
_READ = (
    "positions",
    "node_attrs",
    "edge_index",
    "shifts",
    "unit_shifts",
    "cell",
    "pbc",
    "batch",
    "ptr",
    "head",
    "total_charge",
    "applied_field",
    "epsilon_infinity",
    "plan",
)
_PER_EDGE = {"edge_index": 1, "shifts": 0, "unit_shifts": 0}

logger = logging.getLogger(__name__)


# What is not the same in every step has to be told, nothing else is guessed: sizes of meshes and
# settings become constants of the compiled function.
LIMITS = {
    "automatic_dynamic_shapes": False,
    "specialize_float": True,
    "recompile_limit": 4 * _MOST_KINDS,
    "accumulated_recompile_limit": 8 * _MOST_KINDS,
}


class CompiledPass:
    """Energies and electrical outputs of a model by torch.compile, with first derivatives.

    The compiled function is that of a copy of the model, which is made anew when weights or
    settings of the model have changed. Structures with other numbers of edges share it; others get
    their own.

    Args:
        model: what is evaluated.
        mode: of MODES.
        backend: of torch.compile.

    Raises:
        InputError: an unknown mode, or a model that cannot be made anew from its configuration.
    """

    def __init__(self, model: MultipoleMACE, mode: str, backend: str = "inductor") -> None:
        if mode not in MODES:
            raise InputError(f"compile_mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._how: dict[str, Any] = (
            {"mode": mode} if backend == "inductor" else {"backend": backend}
        )
        self._said: set[str] = set()
        self._start(model)

    def _start(self, model: MultipoleMACE) -> None:
        """Copy a model as it is now."""
        self._state = _state_of(model)
        self._device = next(model.parameters()).device
        with _without_codegen():
            copy: Any = simplify(rebuilt(model))
        copy.electrostatics = deepcopy(model.electrostatics)
        copy = copy.to(self._device).eval().requires_grad_(False)
        head = copy.head
        self._read = (*_READ, *(getattr(model, "embedding_specs", None) or {}))

        def evaluated(data: dict[str, Any]) -> dict[str, Tensor]:
            graph = Graph.of(data)
            short = copy.backbone(graph)
            out = head(copy.head_input(graph, short, head.needs_edges))
            # The backward pass is compiled for everything that has a gradient.
            return {
                name: value if name == "interaction_energy" else value.detach()
                for name, value in copy.outputs(short, out).items()
                if isinstance(value, Tensor)
            }

        # torch counts and searches compiled functions by code object: each model needs its own.
        evaluated.__code__ = evaluated.__code__.replace()
        self._compiled = torch.compile(evaluated, fullgraph=True, **self._how)
        self._kinds: set[Any] = set()

    def __call__(self, model: MultipoleMACE, graph: Graph) -> dict[str, Tensor] | None:
        """The outputs of a batch, MultipoleMACE.outputs of it; None where it is not compiled.

        Args:
            model: the model.
            graph: the batch.

        Raises:
            InputError: torch cannot compile here.
        """
        if graph.plan is None:
            self._say("a committee of different electrostatics is not compiled")
            return None
        if model.long_range_options.is_self_consistent:
            self._say("a self-consistent response is solved for, and the model is not compiled")
            return None
        if self._state != _state_of(model):
            self._start(model)
        asked = (graph.external_field is None, graph.positions.dtype, graph.edge_index.shape[1] > 1)
        kind = (graph.plan.shape, asked)
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            self._say(f"more than {_MOST_KINDS} kinds of structures; others are evaluated without")
            return None
        self._kinds.add(kind)
        given = dict(graph.data, cell=graph.cell.reshape(-1, 3))
        data = {name: given[name] for name in self._read if given.get(name) is not None}
        for name, axis in _PER_EDGE.items():
            torch._dynamo.maybe_mark_dynamic(data[name], axis)
        try:
            with torch._dynamo.config.patch(LIMITS), self.precision():
                found: dict[str, Tensor] = self._compiled(data)
        except InductorError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"compile_mode: torch.compile does not work on this machine ({reason}); it needs a "
                "C++ compiler such as g++, and Triton on a GPU; or leave compile_mode out"
            ) from error
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            self._say(f"torch cannot compile this structure ({reason}); it is evaluated without")
            return None
        return found

    def precision(self) -> AbstractContextManager[None]:
        """What the compiled function and its derivatives run in: all digits of products."""
        return full_precision(self._device)

    def _say(self, sentence: str) -> None:
        """Log a sentence once."""
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("compile_mode: %s", sentence)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """A model that is copied or saved is one without its compiled function."""
        return type(None), ()


def _state_of(model: MultipoleMACE) -> tuple[Any, ...]:
    """What tells whether weights or settings have changed."""
    tensors = (*model.parameters(), *model.buffers())
    engine = model.electrostatics
    kept = engine.settings(), engine.self_interaction
    return *kept, *((id(t), t._version) for t in tensors)


@contextmanager
def _without_codegen() -> Iterator[None]:
    """e3nn writes no TorchScript, which torch.compile cannot read."""
    before = get_optimization_defaults()["jit_script_fx"]
    set_optimization_defaults(jit_script_fx=False)
    try:
        yield
    finally:
        set_optimization_defaults(jit_script_fx=before)


def compiled_copy(model: MultipoleMACE, mode: str) -> MultipoleMACE:
    """A model that shares its weights with the given one, and is evaluated compiled.

    Args:
        model: stays as it is.
        mode: of torch.compile.
    """
    out = copy(model)
    out.compiled = CompiledPass(out, mode)
    return out
