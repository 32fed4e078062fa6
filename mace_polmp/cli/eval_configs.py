"""`mace_eval_configs`: upstream's evaluation, with multipoles for a MultipoleMACE."""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import per_atom_properties
from tqdm import tqdm

from mace_polmp.cli.common import UNCONSTRAINED, run_command
from mace_polmp.errors import InputError
from mace_polmp.quantities import check_prediction


def build_parser() -> argparse.ArgumentParser:
    """The options that upstream's command does not have."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--total_charge", type=float, help="total charge (e) of structures that do not say theirs"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluate with upstream's parsed arguments.

    Raises:
        InputError: a file that cannot be used; no output has been written then.
    """
    from mace_polmp.modules.heads import check_head
    from mace_polmp.modules.io import check_device, check_format, load_any
    from mace_polmp.modules.model import MultipoleMACE
    from mace_polmp.modules.summary import dtype_name
    from mace_polmp.reading import model_file, read_structures
    from mace_polmp.upstream import evaluation

    check_device(args.device)
    if args.batch_size < 1:
        raise InputError(f"--batch_size must be a whole number of 1 or more, got {args.batch_size}")
    model = load_any(model_file(args.model, "--model"))
    check_head(args.head, getattr(model, "heads", ["Default"]))
    if args.head is None and len(getattr(model, "heads", [""])) > 1:
        # Upstream would take the last one where the names differ in their case.
        args.head = next(name for name in model.heads if name.lower() == "default")
    structures = read_structures(args.configs)
    multipoles = isinstance(model, MultipoleMACE)
    if multipoles:
        check_format(model, args.model)
        structures = _check(args, model, structures)
    elif args.total_charge is not None:
        raise InputError("--total_charge is for a MultipoleMACE; leave it out")
    target = Path(args.output)
    if target.is_dir():
        raise InputError(f"--output {target}: is a folder; give the name of a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not multipoles and dtype_name(model) == args.default_dtype:
        evaluation.evaluate_unchanged(args)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".mace_eval_") as folder:
        # Upstream reads pickles of the precision that is asked for only.
        args.model = str(Path(folder) / "model.model")
        evaluation.write_for_upstream(model, args.default_dtype, args.model)
        if multipoles:
            _evaluate(args, model, structures, target, Path(folder))
        else:
            evaluation.evaluate_unchanged(args)


def _check(args: argparse.Namespace, model: Any, structures: list[Atoms]) -> list[Atoms]:
    """Refuse what cannot be evaluated, and say what is assumed; the structures with charges."""
    from mace_polmp.structures import check_structure, total_charge, with_total_charge

    if args.enable_cueq:
        raise InputError("--enable_cueq does not work with a MultipoleMACE; leave it out")
    known, record = model.atomic_numbers.tolist(), model.trained_on
    constrained = model.long_range_options.constrain_charge != "none"
    if args.total_charge is not None and not constrained:
        raise InputError(UNCONSTRAINED.format(args.total_charge))
    out, uncharged, said = [], 0, set()
    for number, atoms in enumerate(structures):
        where = f"{args.configs}: frame {number}"
        check_structure(atoms, where, known, model.electrostatics)
        atoms = with_total_charge(atoms, args.total_charge, where, record.total_charge_key)
        uncharged += total_charge(atoms, where, record.total_charge_key) is None
        slabs = model.long_range_options.defines_polarization
        if args.compute_bec and atoms.pbc.sum() == 2 and not slabs:
            raise InputError(
                f"{where}: --compute_bec: Born charges of slabs are not available, but of models "
                "with --charge_readout bond"
            )
        unknown = record.unknown_boundary(atoms.pbc)
        if unknown is not None and unknown not in said:
            said.add(unknown)
            print(f"note: {where}: {unknown}")
        out.append(atoms)
    if uncharged and constrained:
        print(
            f"note: total charge 0 e of {uncharged} of {len(structures)} structures: nothing given "
            f"(say it with '{record.total_charge_key}' in the file, or with --total_charge)"
        )
    return out


def _evaluate(
    args: argparse.Namespace, model: Any, structures: list[Atoms], target: Path, folder: Path
) -> None:
    """Run upstream's evaluation, add the electrical outputs and put the file in its place."""
    import torch

    from mace_polmp.files import replacing
    from mace_polmp.modules.outputs import ELECTRICAL_OUTPUTS, charges_of_place
    from mace_polmp.upstream import evaluation

    born = _born_charges(args, model, structures) if args.compute_bec else None
    args.compute_bec = False  # upstream's way is that of another model
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ELECTRICAL_OUTPUTS}
    of_cells: list[np.ndarray] = []

    def collect(batch: dict[str, Any], output: dict[str, Any]) -> None:
        splits = batch["ptr"][1:-1].tolist()
        for name, (per_atom, _) in ELECTRICAL_OUTPUTS.items():
            values = output[name].detach().cpu().numpy()
            columns[name] += np.split(values, splits) if per_atom else list(values)
        of_cells.extend(output["cell_polarizability"].detach().cpu().numpy())

    args.output = str(folder / "upstream.xyz")
    moved = evaluation.evaluate(args, model.trained_on.total_charge_key, collect)
    frames = ase.io.read(args.output, index=":")
    for number, atoms in enumerate(frames):
        if args.info_prefix == "":  # under their bare names ASE takes results for a calculator's
            _results_back(atoms)
        for name in ("energy", "forces"):
            places = atoms.arrays if name == "forces" else atoms.info
            check_prediction(places[args.info_prefix + name], name, f"structure {number}")
        atoms.calc = None
        if moved[number] is not None:
            charges = torch.from_numpy(columns["charges"][number]).double()
            charges = charges_of_place(model, charges, atoms.numbers)
            shift = charges.numpy() @ moved[number]
            columns["dipole"][number] = columns["dipole"][number] - shift
        for name, (per_atom, _) in ELECTRICAL_OUTPUTS.items():
            value = columns[name][number]
            check_prediction(value, name, f"structure {number}")
            if not per_atom:
                atoms.info[args.info_prefix + name] = value if value.ndim else float(value)
            elif value.ndim == 1:
                atoms.arrays[args.info_prefix + name] = value
            else:
                atoms.arrays[args.info_prefix + name] = value.reshape(len(atoms), -1)
        check_prediction(of_cells[number], "electronic_polarizability", f"structure {number}")
        atoms.info[args.info_prefix + "electronic_polarizability"] = of_cells[number]
        if model.long_range_options.defines_polarization and atoms.pbc.any():
            factor = model.permittivity() ** 0.5 if atoms.pbc.all() else 1.0
            atoms.info[args.info_prefix + "polarization"] = factor * columns["dipole"][number]
        if born is not None:
            atoms.arrays[args.info_prefix + "BEC"] = born[number].reshape(-1, 9)
        _as_plain_numbers(atoms, args.info_prefix)
    with replacing(target) as temporary:
        ase.io.write(temporary, frames, format="extxyz")


def _as_plain_numbers(atoms: Atoms, prefix: str) -> None:
    """Predicted tensors as nine numbers: others than ASE read the file, too."""
    for name in ("stress", "polarizability", "electronic_polarizability"):
        value = atoms.info.get(prefix + name)
        if isinstance(value, np.ndarray) and value.ndim == 2:
            atoms.info[prefix + name] = value.reshape(-1)


def _results_back(atoms: Atoms) -> None:
    """Put the results that ASE attaches as a calculator back among info and arrays."""
    for name, value in ({} if atoms.calc is None else atoms.calc.results).items():
        (atoms.arrays if name in per_atom_properties else atoms.info)[name] = value


def _born_charges(
    args: argparse.Namespace, model: Any, structures: list[Atoms]
) -> list[np.ndarray]:
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


def main(argv: list[str] | None = None) -> None:
    """Entry point of mace_eval_configs and mace_polmp_eval_configs."""
    from mace_polmp.upstream.evaluation import parse_eval_args

    run_command("mace_eval_configs", lambda: run(parse_eval_args(build_parser(), argv)))


if __name__ == "__main__":
    main()
