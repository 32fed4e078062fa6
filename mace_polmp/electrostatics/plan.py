"""Which solver evaluates which structure of a batch, and what cannot be evaluated at all."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.mesh import MeshShape, bandwidth, mesh_size
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.packing import count_atoms
from mace_polmp.electrostatics.products import cell_volume
from mace_polmp.electrostatics.reciprocal import wave_vector_limits
from mace_polmp.electrostatics.slab import longest_period, required_vacuum, slab_geometry

logger = logging.getLogger(__name__)

OPEN, DIRECT, MESH = 0, 1, 2

_SMALLEST_VOLUME = 1e-6  # Å³
_MOST_WAVES = 1e6  # along one lattice vector
# The direct sum is exact: the mesh has to be faster by more than the scatter of the timings.
_WORTH_IT = 0.8
# A slab whose charges do not cancel better than this fraction of their absolute sum is charged.
_NEUTRAL = 1e-4

Limits = tuple[int, int, int]


@dataclass(frozen=True)
class Settings:
    """What the choice depends on besides the structures.

    Attributes:
        solver: of periodic structures, "auto", "ewald" or "mesh".
        k_cutoff: k_c, 1/Å.
        smearing: σ, Å.
        window_width: of the mesh's window, in mesh points.
    """

    solver: str
    k_cutoff: float
    smearing: float
    window_width: int


@dataclass(frozen=True)
class Plan:
    """The structures of a batch by solver.

    Attributes:
        kinds: of each structure, OPEN, DIRECT or MESH.
        n_atoms: of each structure.
        limits: the largest |n_a| of the wave vectors of each; zero for open ones.
        has_slabs: whether any is periodic in two directions.
    """

    kinds: list[int]
    n_atoms: list[int]
    limits: list[Limits]
    has_slabs: bool

    def of_kind(self, kind: int) -> list[int]:
        """The numbers of the structures of a kind."""
        return [n for n, k in enumerate(self.kinds) if k == kind]

    def common_limits(self, kind: int) -> Limits:
        """The largest limits of any structure of a kind."""
        a, b, c = zip(*(self.limits[n] for n in self.of_kind(kind)), strict=True)
        return max(a), max(b), max(c)


def make_plan(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    settings: Settings,
) -> Plan:
    """Choose the solvers, waiting for the device once, once more for periodic structures and twice
    for slabs, however many there are.

    Raises:
        ValueError: a structure that is periodic in one direction, has a singular cell, is a slab
            with a net charge or too little vacuum, or does not suit the solver asked for.
    """
    counts = count_atoms(batch, pbc.shape[0])
    flags = torch.cat([pbc.long(), counts[:, None]], dim=1).tolist()
    n_atoms = [f[3] for f in flags]
    n_periodic = [sum(f[:3]) for f in flags]
    for number, periodic in enumerate(n_periodic):
        if periodic == 1:
            raise ValueError(
                f"structure {number} has pbc {_letters(flags[number])}: a single periodic "
                "direction is not supported. Set all three, with vacuum in the cell around the "
                "wire, or none"
            )
        if periodic == 0 and settings.solver == "mesh":
            raise ValueError(
                f"structure {number} is open (pbc F F F), but solver 'mesh' was asked for and a "
                "mesh needs a periodic cell: use solver 'auto'"
            )
    kinds, limits = [OPEN] * len(flags), [(0, 0, 0)] * len(flags)
    if any(n_periodic):
        volume = cell_volume(cell.detach().double())
        found = torch.cat([wave_vector_limits(cell, settings.k_cutoff), volume[:, None]], 1)
        for number, (n1, n2, n3, v) in enumerate(found.tolist()):
            if n_periodic[number] == 0:
                continue
            if not v > _SMALLEST_VOLUME:
                raise ValueError(
                    f"structure {number} has pbc {_letters(flags[number])} and a singular cell "
                    f"(volume {v:.3g} Å³): give three independent lattice vectors (a slab needs "
                    "vacuum along the third), or set its pbc to F F F"
                )
            if not max(n1, n2, n3) < _MOST_WAVES:
                raise ValueError(
                    f"structure {number} has a lattice vector of more than "
                    f"{_MOST_WAVES * 2.0 * math.pi / settings.k_cutoff:.3g} Å, and no sum over its "
                    "wave vectors would end: use a smaller cell"
                )
            limits[number] = (int(n1), int(n2), int(n3))
            kinds[number] = _choose(number, n_atoms[number], limits[number], settings)
    if 2 in n_periodic:
        _check_slabs(positions, cell, pbc, batch, multipoles, flags, settings)
    plan = Plan(kinds, n_atoms, limits, 2 in n_periodic)
    _check_memory(plan, settings, positions)
    return plan


def _choose(number: int, n_atoms: int, limits: Limits, settings: Settings) -> int:
    size = tuple(mesh_size(n) for n in limits)
    thin = min(size) < settings.window_width
    if settings.solver == "mesh" and thin:
        raise ValueError(
            f"structure {number} has a mesh of {_times(size)} points, thinner than the window of "
            f"{settings.window_width} points that atoms are spread with: use solver 'auto' or "
            "'ewald', or a supercell"
        )
    if settings.solver == "mesh":
        return MESH
    if settings.solver == "ewald" or thin:
        return DIRECT
    mesh = mesh_cost(n_atoms, limits, settings.window_width)
    return MESH if mesh < _WORTH_IT * direct_cost(n_atoms, limits) else DIRECT


def _wave_vectors(limits: Limits) -> tuple[int, int]:
    """n_1 n_2 and n_1 n_2 n_3 of the half box."""
    n12 = (2 * limits[0] + 1) * (2 * limits[1] + 1)
    return n12, n12 * (limits[2] + 1)


def direct_cost(n_atoms: int, limits: Limits) -> float:
    """Time of the direct sum for energies and forces with response, ms.

    This and mesh_cost are fitted to timings on two cores in single precision
    (scripts/benchmarks/solvers.py); only their ratio matters.
    """
    n12, n123 = _wave_vectors(limits)
    return 2.1 + 2.5e-5 * n_atoms * n12 + 3.1e-7 * n_atoms * n123 + 1e-5 * n123


def mesh_cost(n_atoms: int, limits: Limits, width: int) -> float:
    """Time of the mesh for the same, ms; its number of points is in proportion to n_1 n_2 n_3."""
    return 2.6 + 7.6e-6 * n_atoms * width**3 + 7.3e-5 * _wave_vectors(limits)[1]


def mesh_shape(plan: Plan, settings: Settings) -> MeshShape:
    """The common mesh of all structures that are evaluated on one."""
    limits = plan.common_limits(MESH)
    n1, n2, n3 = (mesh_size(n) for n in limits)
    band = bandwidth(settings.smearing, settings.k_cutoff)
    return MeshShape((n1, n2, n3), limits, settings.window_width, band, len(plan.of_kind(MESH)))


def _check_slabs(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    flags: list[list[int]],
    settings: Settings,
) -> None:
    """Refuse slabs with a net charge or too little vacuum; flags: pbc, read already."""
    charge = multipoles.charge.detach().double()
    sums = charge.new_zeros(len(flags), 2).index_add(
        0, batch, torch.stack([charge, charge.abs()], dim=1)
    )
    geometry = slab_geometry(positions, cell, pbc, batch)
    slabs = [number for number, flag in enumerate(flags) if sum(flag[:3]) == 2]
    found = torch.cat([sums, geometry], dim=1).tolist()
    periods = longest_period(cell.detach().cpu()[slabs], pbc.cpu()[slabs]).tolist()
    for number, period in zip(slabs, periods, strict=True):
        net, total, height, extent = found[number]
        where = f"structure {number} has pbc {_letters(flags[number])}"
        vacuum, least = height - extent, required_vacuum(period, settings.smearing)
        if not vacuum >= least:
            raise ValueError(
                f"{where}, and its atoms extend over {extent:.1f} Å of the cell's {height:.1f} Å "
                "along the direction that is not periodic: that leaves "
                f"{max(vacuum, 0.0):.1f} Å of vacuum, and {least:.1f} Å are needed. Make this "
                f"lattice vector longer (a height of {extent + least:.1f} Å), and put atoms that "
                "left the slab, or are wrapped through the vacuum, back next to it: "
                f"as_slab(atoms, axis, vacuum={least:.1f}) of mace_polmp.structures does both"
            )
        if abs(net) > _NEUTRAL * max(total, 1e-2):
            raise ValueError(
                f"{where} and charges that sum to {net:.3g} e, but the energy of a charged slab "
                "is not defined: give charges that sum to zero"
            )


def _check_memory(plan: Plan, settings: Settings, positions: Tensor) -> None:
    """Refuse arrays over the mesh or the wave vectors that cannot fit.

    Raises:
        ValueError: they need more than the memory of the machine or GPU.
    """
    itemsize = positions.element_size()
    for kind, name, copies in ((MESH, "mesh", 6), (DIRECT, "table of wave vectors", 20)):
        numbers = plan.of_kind(kind)
        if not numbers:
            continue
        if kind == MESH:
            size = mesh_shape(plan, settings).size
        else:
            n1, n2, n3 = plan.common_limits(kind)
            size = (2 * n1 + 1, 2 * n2 + 1, n3 + 1)
        needed = copies * itemsize * len(numbers) * math.prod(size)
        if needed > 2**28 and needed > (there := _memory(positions.device)):
            raise ValueError(
                f"the {name} of {len(numbers)} × {_times(size)} points needs about "
                f"{needed / 2**30:.0f} GiB, more than the {there / 2**30:.0f} GiB there are: use "
                "a larger kspace_spacing, smaller cells (less vacuum), or fewer structures in a "
                "batch"
            )


def _memory(device: torch.device) -> int:
    """Bytes of memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 2**62


def log_plan(plan: Plan, settings: Settings) -> None:
    """Say in the log, at level debug, which solver evaluates which structure."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    parts = []
    for number, (kind, n) in enumerate(zip(plan.kinds, plan.n_atoms, strict=True)):
        how = "open, all pairs"
        if kind == DIRECT:
            how = f"direct k-space sum, |n| up to {_times(plan.limits[number])}"
        elif kind == MESH:
            how = f"particle mesh, {_times(mesh_shape(plan, settings).size)} points"
        parts.append(f"structure {number}: {n} atoms, {how}")
    logger.debug("%s", "; ".join(parts))


def _letters(flags: list[int]) -> str:
    return " ".join("T" if f else "F" for f in flags[:3])


def _times(size: tuple[int, ...]) -> str:
    return " × ".join(map(str, size))
