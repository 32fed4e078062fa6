"""The evaluation of a model as one compiled function, for molecular dynamics."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mace.tools.compile import disable_e3nn_codegen, simplify
from torch import Tensor
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
    "plan",
)
_PER_EDGE = {"edge_index": 1, "shifts": 0, "unit_shifts": 0}

logger = logging.getLogger(__name__)


class CompiledPass:
    """Energies and electrical outputs of a model by torch.compile, with first derivatives.

    The compiled function is that of a copy of the model. Structures with other numbers of edges
    share it; others get their own.

    Args:
        model: as it is now; what happens to its weights later is not seen.
        mode: of MODES.
        backend: of torch.compile.

    Raises:
        InputError: an unknown mode, or a model that cannot be made anew from its configuration.
    """

    def __init__(self, model: MultipoleMACE, mode: str, backend: str = "inductor") -> None:
        if mode not in MODES:
            raise InputError(f"compile_mode must be one of {', '.join(MODES)}, got {mode!r}")
        device = next(model.parameters()).device
        with disable_e3nn_codegen():
            copy: Any = simplify(rebuilt(model))
        copy = copy.to(device).eval().requires_grad_(False)
        head = copy.head

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

        how: dict[str, Any] = {"mode": mode} if backend == "inductor" else {"backend": backend}
        self._compiled = torch.compile(evaluated, fullgraph=True, **how)
        self._kinds: set[Any] = set()
        self._device = device

    def takes(self, graph: Graph) -> bool:
        """Whether a batch has a compiled function, or may have one."""
        kind = self._kind(graph)
        if kind is None:
            return False
        if kind not in self._kinds and len(self._kinds) == _MOST_KINDS:
            logger.warning(
                "compile_mode: more than %d kinds of structures; others are evaluated without",
                _MOST_KINDS,
            )
            self._kinds.add(None)  # said once
        return kind in self._kinds or len(self._kinds) < _MOST_KINDS

    def _kind(self, graph: Graph) -> Any:
        if graph.plan is None:
            return None
        asked = (graph.external_field is None, graph.positions.dtype, graph.edge_index.shape[1] > 1)
        return graph.plan.shape, asked

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """The outputs of a batch; MultipoleMACE.outputs of it.

        Raises:
            InputError: torch cannot compile here.
        """
        self._kinds.add(self._kind(graph))
        given = dict(graph.data, cell=graph.cell.reshape(-1, 3))
        data = {name: given[name] for name in _READ if given.get(name) is not None}
        for name, axis in _PER_EDGE.items():
            torch._dynamo.maybe_mark_dynamic(data[name], axis)
        limits = {"recompile_limit": 4 * _MOST_KINDS, "automatic_dynamic_shapes": True}
        try:
            with torch._dynamo.config.patch(limits), full_precision(self._device):
                found: dict[str, Tensor] = self._compiled(data)
        except InductorError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"compile_mode: torch.compile does not work on this machine ({reason}); it needs a "
                "C++ compiler such as g++, and Triton on a GPU; or leave compile_mode out"
            ) from error
        return found

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """A model that is copied or saved is one without its compiled function."""
        return type(None), ()
