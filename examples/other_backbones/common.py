"""What the scripts of this folder share: data, a model with or without head, training, errors.

The data come with the package: GFN2-xTB clusters of water with Na+ and Cl− and dimers of their
fragments.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor

from mace_polmp.head import Edges, HeadInput, HeadOutput, LongRangeHead, LongRangeOptions

ELEMENTS = [1, 8, 11, 17]
CUTOFF = 4.0
"""Å. Two layers reach 8 Å, less than the smallest gap of the held-out dimers."""

DATA = {
    "train": "training",
    "valid": "validation, gaps 1.6-6 Å",
    "far": "held out, gaps 8.5-14 Å",
}

_BATCH = 16
_ENERGY_WEIGHT = 30.0  # of (eV/atom)² where forces have 1 per (eV/Å)²
_LAST_RATE = 0.02  # the learning rate ends at this fraction of its start


@dataclass(frozen=True)
class Structures:
    """A batch of structures with their neighbours and labels.

    Attributes:
        positions: [n_atoms, 3], Å.
        cell: [n_structures, 3, 3], Å, rows are lattice vectors.
        pbc: [n_structures, 3], bool.
        batch: [n_atoms], the structure of each atom.
        species: [n_atoms], the place of each atom's element in ELEMENTS.
        edges: [2, n_edges], sender and receiver of each pair closer than CUTOFF, both ways.
        shifts: [n_edges, 3], Å, the lattice vector that brings the receiver next to the sender.
        total_charge: [n_structures], e.
        energy: [n_structures], eV, the label.
        forces: [n_atoms, 3], eV/Å, the label.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    species: Tensor
    edges: Tensor
    shifts: Tensor
    total_charge: Tensor
    energy: Tensor
    forces: Tensor

    @classmethod
    def of(cls, atoms: Atoms) -> Structures:
        """One structure."""
        sender, receiver, shifts = neighbor_list("ijS", atoms, CUTOFF)
        cell = np.array(atoms.cell)
        return cls(
            positions=_double(atoms.positions),
            cell=_double(cell)[None],
            pbc=torch.tensor(np.array(atoms.pbc))[None],
            batch=torch.zeros(len(atoms), dtype=torch.int64),
            species=torch.tensor([ELEMENTS.index(z) for z in atoms.numbers]),
            edges=torch.tensor(np.stack([sender, receiver])),
            shifts=_double(shifts @ cell),
            total_charge=_double([atoms.info["total_charge"]]),
            energy=_double([atoms.info["REF_energy"]]),
            forces=_double(atoms.arrays["REF_forces"]),
        )

    @classmethod
    def join(cls, parts: Sequence[Structures]) -> Structures:
        """Several in one batch."""
        first_atom = np.cumsum([0] + [len(p.positions) for p in parts])
        first = np.cumsum([0] + [p.n_structures for p in parts])
        joined = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if f.name not in ("batch", "edges")
        }
        batch = torch.cat([p.batch + int(n) for p, n in zip(parts, first, strict=False)])
        edges = [p.edges + int(n) for p, n in zip(parts, first_atom, strict=False)]
        return cls(batch=batch, edges=torch.cat(edges, dim=1), **joined)

    @property
    def n_structures(self) -> int:
        return len(self.energy)

    @property
    def n_atoms(self) -> Tensor:
        """[n_structures]."""
        return torch.bincount(self.batch, minlength=self.n_structures)

    @property
    def one_hot(self) -> Tensor:
        """[n_atoms, n_elements], 1 in the column of the atom's element."""
        return torch.nn.functional.one_hot(self.species, len(ELEMENTS)).to(self.positions)

    def sum(self, per_atom: Tensor) -> Tensor:
        """Sums over the atoms of each structure, [n_structures]."""
        return per_atom.new_zeros(self.n_structures).index_add(0, self.batch, per_atom)


def _double(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


@dataclass(frozen=True)
class Statistics:
    """What a model should know of the training data.

    Attributes:
        e0s: energy of an atom of each element, eV, by least squares.
        force_rms: eV/Å.
        avg_num_neighbors: within CUTOFF.
    """

    e0s: list[float]
    force_rms: float
    avg_num_neighbors: float

    @classmethod
    def of(cls, data: Sequence[Structures]) -> Statistics:
        """Of a training set."""
        everything = Structures.join(data)
        counts = torch.stack([everything.sum(column) for column in everything.one_hot.T], dim=1)
        e0s, *_ = np.linalg.lstsq(counts.numpy(), everything.energy.numpy(), rcond=None)
        return cls(
            e0s=e0s.tolist(),
            force_rms=float(everything.forces.square().mean().sqrt()),
            avg_num_neighbors=everything.edges.shape[1] / len(everything.positions),
        )


class Features(NamedTuple):
    """What an adapter takes out of its backbone.

    Attributes:
        energy: [n_atoms], eV, the short-range energy of each atom.
        node_feats: [n_atoms, n_features], the features of all layers side by side.
        radial: [n_edges, n_radial], functions of the distance that vanish at the cutoff.
    """

    energy: Tensor
    node_feats: Tensor
    radial: Tensor


class Backbone(torch.nn.Module, ABC):
    """A short-range model that shows its features: what an adapter must be.

    Attributes:
        layer_irreps: the irreps of each layer's node features, as e3nn writes them.
        n_radial: width of Features.radial.
    """

    layer_irreps: list[str]
    n_radial: int

    @abstractmethod
    def forward(self, structures: Structures, vectors: Tensor) -> Features:
        """Energies and features.

        Args:
            structures: the batch.
            vectors: [n_edges, 3], receiver minus sender, Å, with a gradient to the positions.
        """


class Prediction(NamedTuple):
    """Energy [n_structures], eV; forces [n_atoms, 3], eV/Å; what the head says, if there is one."""

    energy: Tensor
    forces: Tensor
    head: HeadOutput | None


class Model(torch.nn.Module):
    """A backbone, and the long-range head on it if wanted; one derivative of the sum.

    Args:
        backbone: the short-range model.
        options: of the head; None is no head.
        statistics: of the training data.
    """

    def __init__(
        self, backbone: Backbone, options: LongRangeOptions | None, statistics: Statistics
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: LongRangeHead | None = None
        if options is not None:
            self.head = LongRangeHead(
                options=options,
                layer_irreps=backbone.layer_irreps,
                atomic_numbers=ELEMENTS,
                n_radial=backbone.n_radial,
                avg_num_neighbors=statistics.avg_num_neighbors,
                cutoff=CUTOFF,
            )

    def forward(self, structures: Structures, training: bool = False) -> Prediction:
        """Energies and forces; with training, forces that can be differentiated once more."""
        positions = structures.positions.clone().requires_grad_()
        sender, receiver = structures.edges
        vectors = positions[receiver] - positions[sender] + structures.shifts
        features = self.backbone(structures, vectors)
        energy = structures.sum(features.energy)
        out: HeadOutput | None = None
        if self.head is not None:
            edges = Edges(structures.edges, vectors, features.radial, cutoff=None)
            out = self.head(
                HeadInput(
                    positions=positions,
                    cell=structures.cell,
                    pbc=structures.pbc,
                    batch=structures.batch,
                    node_feats=features.node_feats,
                    node_attrs=structures.one_hot,
                    edges=edges,
                    total_charge=structures.total_charge,
                    external_field=None,
                )
            )
            energy = energy + out.energy
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=training)
        return Prediction(energy, -gradient, out)


def read(name: str) -> list[Structures]:
    """One of the data sets that come with the package: train, valid or far."""
    path = resources.files("mace_polmp") / "data" / f"water_ions_{name}.xyz"
    return [Structures.of(atoms) for atoms in ase.io.read(str(path), ":")]


def batches(data: Sequence[Structures], order: Sequence[int]) -> Iterator[Structures]:
    """The structures in an order, some at a time."""
    for start in range(0, len(order), _BATCH):
        yield Structures.join([data[i] for i in order[start : start + _BATCH]])


def train(model: Model, data: Sequence[Structures], epochs: int, rate: float, seed: int) -> None:
    """Adam on energies per atom and forces; the learning rate falls exponentially.

    Args:
        model: to be trained.
        data: the training set.
        epochs: how often every structure is seen.
        rate: the learning rate at the start.
        seed: of the order of the structures.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _LAST_RATE ** (1 / epochs))
    random = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in batches(data, random.permutation(len(data)).tolist()):
            found = model(batch, training=True)
            energy = ((found.energy - batch.energy) / batch.n_atoms).square().mean()
            forces = (found.forces - batch.forces).square().mean()
            optimizer.zero_grad()
            (_ENERGY_WEIGHT * energy + forces).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            losses.append([energy.item(), forces.item()])
        schedule.step()
        if epoch % max(1, epochs // 10) == 0:
            of_energy, of_forces = 1000 * np.sqrt(np.mean(losses, axis=0))
            print(
                f"  epoch {epoch:3d}: training RMSE {of_energy:7.2f} meV/atom, "
                f"{of_forces:7.1f} meV/Å",
                flush=True,
            )


def errors(model: Model, data: Sequence[Structures]) -> list[float]:
    """MAE and RMSE of energies (meV/atom), MAE and RMSE of forces (meV/Å)."""
    energies, forces = [], []
    for batch in batches(data, range(len(data))):
        found = model(batch)
        energies.append(((found.energy - batch.energy) / batch.n_atoms).detach())
        forces.append((found.forces - batch.forces).flatten())
    out = []
    for differences in (torch.cat(energies), torch.cat(forces)):
        out += [float(differences.abs().mean()), float(differences.square().mean().sqrt())]
    return [1000 * value for value in out]


def check_forces(model: Model, structure: Structures, step: float = 2e-5) -> float:
    """The largest difference of forces and central differences of the energy, eV/Å."""
    forces = model(structure).forces
    worst = 0.0
    for atom, axis in np.ndindex(*forces.shape):
        energies = []
        for sign in (1.0, -1.0):
            moved = structure.positions.clone()
            moved[atom, axis] += sign * step
            there = replace(structure, positions=moved)
            energies.append(float(model(there).energy.detach()))
        numerical = -(energies[0] - energies[1]) / (2 * step)
        worst = max(worst, abs(numerical - float(forces[atom, axis])))
    return worst


def command_line(name: str, epochs: int, rate: float) -> argparse.Namespace:
    """The settings of an example; in a notebook, their defaults."""
    parser = argparse.ArgumentParser(
        description=f"{name} with and without the long-range head",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs of each training")
    parser.add_argument("--rate", type=float, default=rate, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    folder = Path(name.lower().replace(" ", "_"))
    parser.add_argument("--output", type=Path, default=folder, help="folder to write to")
    args = parser.parse_args([] if "ipykernel" in sys.modules else None)
    if args.epochs < 1 or not args.rate > 0:
        parser.error("--epochs must be at least 1 and --rate positive")
    return args


def compare(
    name: str, make_backbone: Callable[[Statistics, int], Backbone], epochs: int, rate: float
) -> None:
    """Train without and with the head from the same start, print and write the errors of both.

    Args:
        name: of the backbone.
        make_backbone: makes it, from the statistics of the training data and a seed.
        epochs: of each training, the default of the command line.
        rate: the learning rate at the start, the default of the command line.
    """
    args = command_line(name, epochs, rate)
    torch.set_num_threads(1)  # the matrices are small
    torch.set_default_dtype(torch.float64)
    args.output.mkdir(parents=True, exist_ok=True)
    data = {key: read(key) for key in DATA}
    statistics = Statistics.of(data["train"])
    rows: list[list[str | float]] = []
    for label, options in (("without head", None), ("with head", LongRangeOptions())):
        torch.manual_seed(args.seed)
        model = Model(make_backbone(statistics, args.seed), options, statistics)
        print(f"{name} {label}: {sum(p.numel() for p in model.parameters())} weights", flush=True)
        started = time.perf_counter()
        train(model, data["train"], args.epochs, args.rate, args.seed)
        seconds = round(time.perf_counter() - started)
        off = check_forces(model, data["valid"][0])
        print(f"  {seconds} s; forces are the derivative of the energy within {off:.0e} eV/Å")
        torch.save(model.state_dict(), args.output / f"{label.replace(' ', '_')}.pt")
        for key in ("valid", "far"):
            rows.append([DATA[key], f"{name} {label}", *errors(model, data[key]), seconds])
    rows.sort(key=lambda row: row[0] != DATA["valid"])
    _show(rows, args.output / "errors.csv")


def _show(rows: list[list[str | float]], path: Path) -> None:
    """Print the table of errors, and write it."""
    titles = ["energy MAE", "energy RMSE", "forces MAE", "forces RMSE", "seconds"]
    titles = ["data", "model", *titles]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([titles, *rows])
    print("\nEnergies in meV/atom, forces in meV/Å")
    lines = [titles, ["---"] * len(titles)]
    lines += [[f"{x:.1f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print(f"Also in {path}")
