"""Which solver suits a structure, and which structures are evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mace_polmp.electrostatics.mesh import MeshShape, bandwidth, mesh_size
from mace_polmp.electrostatics.settings import Settings

OPEN, DIRECT, MESH = 0, 1, 2
Limits = tuple[int, int, int]
Flags = tuple[bool, bool, bool]

# The direct sum is exact: the mesh has to be faster by more than the scatter of the timings.
_WORTH_IT = 0.8


@dataclass(frozen=True)
class Group:
    """Structures that are evaluated together.

    Attributes:
        kind: OPEN, DIRECT or MESH.
        members: the numbers of the structures.
        counts: of their atoms.
        limits: the largest |n_a| of the wave vectors of any of them; zero for open ones.
        normals: of each, the axis that is not periodic of a slab, −1 of other structures.
    """

    kind: int
    members: tuple[int, ...]
    counts: tuple[int, ...]
    limits: Limits
    normals: tuple[int, ...]

    @property
    def has_slabs(self) -> bool:
        """Whether any is periodic in two directions."""
        return any(axis >= 0 for axis in self.normals)

    @property
    def n_pairs(self) -> int:
        """The number of unordered pairs of atoms of the same structure."""
        return sum(n * (n - 1) // 2 for n in self.counts)

    def mesh(self, settings: Settings) -> MeshShape:
        """The common mesh of the structures."""
        n1, n2, n3 = (mesh_size(n) for n in self.limits)
        band = bandwidth(settings.smearing, settings.k_cutoff)
        count = len(self.members)
        return MeshShape((n1, n2, n3), self.limits, settings.window_width, band, count)


def choose_solver(number: int, n_atoms: int, limits: Limits, settings: Settings) -> int:
    """DIRECT or MESH for a periodic structure.

    Raises:
        ValueError: the solver that was asked for does not suit it.
    """
    size = tuple(mesh_size(n) for n in limits)
    thin = min(size) < settings.window_width
    if settings.solver == "mesh" and thin:
        raise ValueError(
            f"structure {number} has a mesh of {times(size)} points, thinner than the window of "
            f"{settings.window_width} points that atoms are spread with: use solver 'auto' or "
            "'ewald', or a supercell"
        )
    if settings.solver == "mesh":
        return MESH
    if settings.solver == "ewald" or thin:
        return DIRECT
    mesh = mesh_cost(n_atoms, limits, settings.window_width)
    return MESH if mesh < _WORTH_IT * direct_cost(n_atoms, limits) else DIRECT


def grouped(
    kinds: list[int],
    counts: list[int],
    limits: list[Limits],
    flags: tuple[Flags, ...],
    settings: Settings,
) -> tuple[Group, ...]:
    """Structures that share a solver and are cheaper together than apart.

    All structures of a group pay for its largest box of wave vectors and, in the direct sum, for
    its largest number of atoms. From the smallest box to the largest, each structure joins the
    group before it unless a group of its own costs less.
    """
    groups: list[Group] = []
    for kind in (OPEN, DIRECT, MESH):
        members = [n for n, k in enumerate(kinds) if k == kind]
        members.sort(key=lambda n: (_wave_vectors(limits[n])[1], counts[n], n))
        bundles: list[list[int]] = []
        for n in members:
            if bundles and (
                kind == OPEN
                or _cost(kind, [*bundles[-1], n], counts, limits, settings)
                <= _cost(kind, bundles[-1], counts, limits, settings)
                + _cost(kind, [n], counts, limits, settings)
            ):
                bundles[-1].append(n)
            else:
                bundles.append([n])
        for bundle in bundles:
            bundle.sort()
            normals = (flags[n].index(False) if sum(flags[n]) == 2 else -1 for n in bundle)
            groups.append(
                Group(
                    kind,
                    tuple(bundle),
                    tuple(counts[n] for n in bundle),
                    _common(limits, bundle),
                    tuple(normals),
                )
            )
    return tuple(groups)


def _common(limits: list[Limits], members: list[int]) -> Limits:
    """The largest limits of any of the structures."""
    a, b, c = zip(*(limits[n] for n in members), strict=True)
    return max(a), max(b), max(c)


def _cost(
    kind: int, members: list[int], counts: list[int], limits: list[Limits], settings: Settings
) -> float:
    """Time of structures that are evaluated together, ms."""
    common, n = _common(limits, members), len(members)
    if kind == MESH:
        start = mesh_cost(0, (0, 0, 0), settings.window_width)
        each = mesh_cost(0, common, settings.window_width) - start
        atoms = mesh_cost(sum(counts[m] for m in members), (0, 0, 0), settings.window_width)
        return atoms + n * each
    start = direct_cost(0, (0, 0, 0))
    return start + n * (direct_cost(max(counts[m] for m in members), common) - start)


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


def letters(flag: Sequence[bool]) -> str:
    """T T F."""
    return " ".join("T" if f else "F" for f in flag[:3])


def times(size: tuple[int, ...]) -> str:
    """16 × 16 × 20."""
    return " × ".join(map(str, size))
