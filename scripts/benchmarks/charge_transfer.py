"""Does charge move along a molecule, farther than the backbone sees?

Carbon chains, some with one more hydrogen and a total charge of 1 e: charges of the CHn groups over
their distance from that end, how they change when it is taken off, and errors of forces there.

    python scripts/benchmarks/charge_transfer.py --configs benchmarks/carbon_chains/test.xyz \
        --model benchmarks/carbon_chains/{sr,les,uQiqiu}/seed1/m.model
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import figures
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from common import machine, report
from tqdm import tqdm

from mace_polmp.calculators.loading import load_calculator
from mace_polmp.structures import read_structures

# Of the table, by group: RMSE of forces on C, meV/Å; charge, and what the proton adds to it, e.
COLUMNS = (
    "forces, neutral",
    "forces, protonated",
    "charge, neutral",
    "charge, protonated",
    "change",
)


class Chain:
    """A chain of carbon atoms, from the end with more hydrogens on."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        distances = atoms.get_all_distances()
        carbons = np.flatnonzero(atoms.numbers == 6)
        hydrogens = np.flatnonzero(atoms.numbers == 1)
        self.owners = carbons[distances[np.ix_(hydrogens, carbons)].argmin(1)]
        ends, counts = np.unique(self.owners, return_counts=True)
        first = ends[counts.argmax()]
        self.carbons = carbons[distances[first, carbons].argsort()]
        self.distances = distances[first, self.carbons]
        self.hydrogens = hydrogens
        self.proton = hydrogens[self.owners == first][0]

    def groups(self, calculator: Calculator) -> np.ndarray:
        """Charges of the CHn, e, in the order of the chain."""
        charges = np.array(calculator.get_property("charges", self.atoms))
        np.add.at(charges, self.owners, charges[self.hydrogens])
        return charges[self.carbons]

    def without_proton(self) -> Chain:
        """The neutral chain, perhaps the other way round."""
        atoms = self.atoms.copy()
        del atoms[self.proton]
        for key in ("total_charge", "charge"):
            atoms.info.pop(key, None)
        return Chain(atoms)


def taken_off(chain: Chain, charges: np.ndarray, calculator: Calculator) -> np.ndarray:
    """What charges of the groups lose with the proton, e."""
    rest = chain.without_proton()
    after = rest.groups(calculator)
    same = np.abs(rest.atoms.positions[rest.carbons[0]] - chain.atoms.positions[chain.carbons[0]])
    return charges - (after if same.max() < 1e-6 else after[::-1])


def measure(model: Path, chains: list[Chain]) -> dict[str, np.ndarray]:
    """Means over the chains, by group: RMSE of forces, charges and their change."""
    calculator = load_calculator(model)
    has_charges = "long_range_energy" in calculator.implemented_properties
    found: dict[str, list[np.ndarray]] = {}
    for chain in tqdm(chains, desc=str(model), unit="chain", disable=None):
        charged = "protonated" if chain.atoms.info["total_charge"] else "neutral"
        errors = calculator.get_property("forces", chain.atoms) - chain.atoms.arrays["REF_forces"]
        squares = (errors[chain.carbons] ** 2).mean(1)
        found.setdefault(f"forces, {charged}", []).append(squares)
        if not has_charges:
            continue
        charges = chain.groups(calculator)
        found.setdefault(f"charge, {charged}", []).append(charges)
        if charged == "protonated":
            change = taken_off(chain, charges, calculator)
            found.setdefault("change", []).append(change)
    means = {name: np.mean(values, 0) for name, values in found.items()}
    return {n: 1e3 * np.sqrt(m) if n.startswith("forces") else m for n, m in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    chains = [Chain(atoms) for atoms in read_structures(args.configs)]
    protonated = [chain for chain in chains if chain.atoms.info["total_charge"]]
    distances = np.mean([chain.distances for chain in protonated], 0)
    results = {path.parent.parent.name: measure(path, chains) for path in args.model}
    rows: list[dict[str, Any]] = []
    for name, found in results.items():
        for number, distance in enumerate(distances):
            numbers = {key: f"{found[key][number]:.3g}" for key in COLUMNS if key in found}
            rows.append({"model": name, "distance": f"{distance:.1f}", **numbers})
    print(machine())
    report(rows, args.output, "charge_transfer")
    figures.charge_transfer(rows, args.output, machine())


if __name__ == "__main__":
    main()
