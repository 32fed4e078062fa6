"""`mace_eval_configs`: upstream's evaluation, with multipoles for a MultipoleMACE."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from mace_polmp.cli.common import run_command
from mace_polmp.errors import InputError


def run(args: argparse.Namespace) -> None:
    """Evaluate with upstream's parsed arguments.

    Raises:
        InputError: a file that cannot be used; no output has been written then.
    """
    from mace_polmp.modules.io import check_format, load_any
    from mace_polmp.modules.model import ELECTRICAL_OUTPUTS, MultipoleMACE
    from mace_polmp.structures import check_structure, read_structures
    from mace_polmp.training import seams

    model = load_any(args.model)
    if not isinstance(model, MultipoleMACE):
        seams.evaluate_unchanged(args)
        return
    check_format(model, args.model)
    for flag in ("enable_cueq", "compute_bec"):
        if getattr(args, flag):
            raise InputError(f"--{flag} does not work with a MultipoleMACE; leave it out")
    if args.head is not None and args.head not in model.heads:
        raise InputError(f"--head must be one of {', '.join(model.heads)}, got {args.head!r}")
    known = model.atomic_numbers.tolist()
    for number, atoms in enumerate(read_structures(args.configs)):
        check_structure(atoms, f"{args.configs}: frame {number}", known, model.electrostatics)

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
        finished = Path(folder) / "finished.xyz"
        ase.io.write(finished, frames, format="extxyz")
        os.replace(finished, target)


def main() -> None:
    """Entry point of mace_eval_configs and mace_polmp_eval_configs."""
    from mace_polmp.training.seams import parse_eval_args

    run_command("mace_eval_configs", lambda: run(parse_eval_args()))


if __name__ == "__main__":
    main()
