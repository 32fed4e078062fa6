"""`mace_eval_configs`: upstream's evaluation, with multipoles for a MultipoleMACE."""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from tqdm import tqdm

from mace_polmp.cli.common import run_command
from mace_polmp.errors import InputError


def run(args: argparse.Namespace) -> None:
    """Evaluate with upstream's parsed arguments.

    Raises:
        InputError: a file that cannot be used; no output has been written then.
    """
    from mace_polmp.modules.io import check_format, load_any
    from mace_polmp.modules.model import ELECTRICAL_OUTPUTS, MultipoleMACE
    from mace_polmp.structures import check_structure, read_structures, total_charge
    from mace_polmp.training import seams

    model = load_any(args.model)
    if not isinstance(model, MultipoleMACE):
        seams.evaluate_unchanged(args)
        return
    check_format(model, args.model)
    if args.enable_cueq:
        raise InputError("--enable_cueq does not work with a MultipoleMACE; leave it out")
    if args.head is not None and args.head not in model.heads:
        raise InputError(f"--head must be one of {', '.join(model.heads)}, got {args.head!r}")
    known = model.atomic_numbers.tolist()
    structures = read_structures(args.configs)
    for number, atoms in enumerate(structures):
        where = f"{args.configs}: frame {number}"
        check_structure(atoms, where, known, model.electrostatics)
        total_charge(atoms, where)
        if args.compute_bec and atoms.pbc.sum() == 2:
            raise InputError(f"{where}: --compute_bec: Born charges of slabs are not available")
    born = _born_charges(args, model, structures) if args.compute_bec else None
    args.compute_bec = False  # upstream's way is that of another model

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ELECTRICAL_OUTPUTS}

    def collect(batch: dict[str, Any], output: dict[str, Any]) -> None:
        splits = batch["ptr"][1:-1].tolist()
        for name, (per_atom, _) in ELECTRICAL_OUTPUTS.items():
            values = output[name].detach().cpu().numpy()
            columns[name] += np.split(values, splits) if per_atom else list(values)

    target = Path(args.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".mace_eval_") as folder:
        args.output = str(Path(folder) / "upstream.xyz")
        seams.evaluate(args, on_output=collect)
        frames = ase.io.read(args.output, index=":")
        for number, atoms in enumerate(frames):
            atoms.calc = None
            for name, (per_atom, _) in ELECTRICAL_OUTPUTS.items():
                value = columns[name][number]
                if not per_atom:
                    atoms.info[args.info_prefix + name] = value if value.ndim else float(value)
                elif value.ndim == 1:
                    atoms.arrays[args.info_prefix + name] = value
                else:
                    atoms.arrays[args.info_prefix + name] = value.reshape(len(atoms), -1)
            if born is not None:
                atoms.arrays[args.info_prefix + "BEC"] = born[number].reshape(-1, 9)
        finished = Path(folder) / "finished.xyz"
        ase.io.write(finished, frames, format="extxyz")
        os.replace(finished, target)


def _born_charges(args: argparse.Namespace, model: Any, structures: list[Any]) -> list[np.ndarray]:
    """[n_atoms, 3, 3] of each structure; they may differ in their boundary conditions."""
    from mace_polmp.calculators import MultipoleMACECalculator

    calculator = MultipoleMACECalculator(
        models=copy.deepcopy(model),
        device=args.device,
        default_dtype=args.default_dtype,
        head=args.head,
    )
    frames = tqdm(structures, desc="Born charges", unit="structure", disable=None)
    return [calculator.get_property("born_charges", atoms) for atoms in frames]


def main() -> None:
    """Entry point of mace_eval_configs and mace_polmp_eval_configs."""
    from mace_polmp.training.seams import parse_eval_args

    run_command("mace_eval_configs", lambda: run(parse_eval_args()))


if __name__ == "__main__":
    main()
