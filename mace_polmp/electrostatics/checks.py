"""What the engine refuses of structures that a plan alone cannot tell."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from mace_polmp.electrostatics.grouping import DIRECT, MESH, letters, times
from mace_polmp.electrostatics.plan import PlanShape
from mace_polmp.electrostatics.slab import longest_period, required_vacuum, slab_geometry

# A slab whose charges do not cancel better than this fraction of their absolute sum is charged.
_NEUTRAL = 1e-4


def check_slabs(
    positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, charge: Tensor, shape: PlanShape
) -> None:
    """Refuse slabs with a net charge or too little vacuum, waiting for the device twice.

    Raises:
        ValueError: names the structure.
    """
    slabs = [number for number, flag in enumerate(shape.pbc) if sum(flag) == 2]
    if not slabs:
        return
    charge = charge.detach().double()
    sums = charge.new_zeros(len(shape.pbc), 2).index_add(
        0, batch, torch.stack([charge, charge.abs()], dim=1)
    )
    geometry = slab_geometry(positions, cell, pbc, batch)
    found = torch.cat([sums, geometry], dim=1).tolist()
    periods = longest_period(cell.detach().cpu()[slabs], pbc.cpu()[slabs]).tolist()
    for number, period in zip(slabs, periods, strict=True):
        net, total, height, extent = found[number]
        where = f"structure {number} has pbc {letters(shape.pbc[number])}"
        check_vacuum(where, height, extent, required_vacuum(period, shape.settings.smearing))
        if abs(net) > _NEUTRAL * max(total, 1e-2):
            raise ValueError(
                f"{where} and charges that sum to {net:.3g} e, but the energy of a charged slab "
                "is not defined: give charges that sum to zero"
            )


def check_vacuum(where: str, height: float, extent: float, least: float) -> None:
    """Refuse a slab with too little vacuum.

    Args:
        where: what to call it.
        height: of the cell, Å.
        extent: of its atoms along the normal, Å.
        least: the vacuum that is needed, Å.

    Raises:
        ValueError: it has less.
    """
    vacuum = height - extent
    if not vacuum >= least:
        raise ValueError(
            f"{where}, and its atoms extend over {extent:.1f} Å of the cell's {height:.1f} Å "
            "along the direction that is not periodic: that leaves "
            f"{max(vacuum, 0.0):.1f} Å of vacuum, and {least:.1f} Å are needed. Make this "
            f"lattice vector longer (a height of {extent + least:.1f} Å), and put atoms that "
            "left the slab, or are wrapped through the vacuum, back next to it: "
            f"as_slab(atoms, axis, vacuum={least:.1f}) of mace_polmp.structures does both"
        )


def check_memory(shape: PlanShape, itemsize: int, device: torch.device) -> None:
    """Refuse arrays over the mesh or the wave vectors that cannot fit.

    Args:
        shape: of the plan.
        itemsize: bytes of a number.
        device: where they would lie.

    Raises:
        ValueError: they need more than the memory of the machine or GPU.
    """
    for group in shape.groups:
        if group.kind == MESH:
            name, copies, size = "mesh", 6, group.mesh(shape.settings).size
        elif group.kind == DIRECT:
            n1, n2, n3 = group.limits
            name, copies = "table of wave vectors", 20
            size = (2 * n1 + 1, 2 * n2 + 1, n3 + 1)
        else:
            continue
        needed = copies * itemsize * len(group.members) * math.prod(size)
        if needed > 2**28 and needed > (there := _memory(device)):
            raise ValueError(
                f"the {name} of {len(group.members)} × {times(size)} points needs about "
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
