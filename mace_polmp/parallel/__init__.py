"""One structure on many processes: sums over all of them, and features of atoms at the borders."""

import mace_polmp.quiet  # noqa: F401  before mace
from mace_polmp.parallel.halo import Halo
from mace_polmp.parallel.model import Part, PartResult, SharedModel
from mace_polmp.parallel.processes import MPIProcesses, OneProcess, Processes, TorchProcesses
from mace_polmp.parallel.sums import SharedSums

__all__ = [
    "Halo",
    "MPIProcesses",
    "OneProcess",
    "Part",
    "PartResult",
    "Processes",
    "SharedModel",
    "SharedSums",
    "TorchProcesses",
]
