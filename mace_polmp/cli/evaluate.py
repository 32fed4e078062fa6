"""`mace_polmp evaluate`: errors and parity plots against all the labels a file has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.analysis.errors import Comparison, ErrorMeasures
from mace_polmp.analysis.tables import r_squared, significant, text_table
from mace_polmp.branches import said_of
from mace_polmp.cli.common import (
    HelpWithDefaults,
    add_model_options,
    checked,
    make_calculator,
)
from mace_polmp.errors import InputError
from mace_polmp.quantities import QUANTITIES, find
from mace_polmp.unit_names import ENERGY_PER_ATOM, with_unit

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "evaluate",
        help="errors and parity plots of energies, forces, stress, dipoles, polarizations, "
        "polarizabilities and Born charges",
        description="Compare a model with whatever labels a file has: a table of MAE, RMSE and "
        "R², by element where atoms have labels, and parity plots. Plain MACE models work too.",
        formatter_class=HelpWithDefaults,
    )
    add_model_options(parser)
    group = parser.add_argument_group("labels")
    group.add_argument("--configs", required=True, help="structure file with labels")
    group.add_argument("--output", type=Path, default=Path("evaluation"), help="folder to write to")
    for name, quantity in QUANTITIES.items():
        group.add_argument(
            f"--{name}_key",
            default=quantity.key,
            help=f"key of the label: {name.replace('_', ' ')}",
        )
    group.add_argument(
        "--transposed_born_charges",
        action="store_true",
        help="labels of Born charges are [displacement, polarization]",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare, print the table, write CSV and plots."""
    from mace_polmp.calculators.comparison import compare
    from mace_polmp.structures import check_structure, read_structures

    calculator = _calculator(args)
    frames = read_structures(args.configs)
    model = calculator.models[0]
    engine = getattr(model, "electrostatics", None)
    if engine is None and args.total_charge is not None:
        raise InputError("--total_charge is for a MultipoleMACE; leave it out")
    for number, atoms in enumerate(frames):
        where = f"{args.configs}: frame {number}"
        if engine is not None:
            frames[number] = checked(args, atoms, where, calculator)
        else:
            check_structure(atoms, where, model.atomic_numbers.tolist())
    keys = {name: getattr(args, f"{name}_key") for name in QUANTITIES}
    _check_keys(keys, frames, args.configs)
    found = compare(calculator, frames, keys, where=args.configs)
    if not found:
        raise InputError(
            f"{args.configs}: no frame has any of the labels {', '.join(keys.values())} that the "
            "model can predict; name them with --energy_key, --forces_key and so on (predictions "
            "without labels: mace_eval_configs)"
        )
    if args.transposed_born_charges and "born_charges" in found:
        found["born_charges"].transpose_references()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = error_rows(found)
    _print(rows, len(frames))
    if "energy" in found:
        _print_offset(found["energy"])
    if "born_charges" in found:
        _print_sum_rule(found["born_charges"])
    if "polarization" in found:
        entry = found["polarization"]
        if far := said_of(entry.far, len(entry.reference)):
            print(f"note: {far}")
    plots.write_csv(args.output / "errors.csv", HEADER, rows)
    source = (f"model {plots.names(args.model)}", plots.names(args.configs))
    for name, entry in found.items():
        _draw(args.output / f"parity_{name}.png", name, entry, source)
    print(f"{args.output}/errors.csv, " + ", ".join(f"parity_{name}.png" for name in found))
    print("(each picture as .svg too)")
    if engine is not None:
        from mace_polmp.calculators.verdict import verdict_of

        names = {name: keys[name] for name in ("dipole", "born_charges")}
        verdict, count = verdict_of(calculator, frames, names, args.configs)
        print(verdict.text(f"{count} structures"))


def _check_keys(keys: dict[str, str], frames: list[Any], where: str) -> None:
    """Refuse a name of a label that was asked for and that no frame has."""
    from mace_polmp.labels import names_in

    for name, key in keys.items():
        if key != QUANTITIES[name].key and all(find(atoms, key) is None for atoms in frames):
            raise InputError(
                f"--{name}_key {key}: no frame of {where} has it; frame 0 has {names_in(frames[0])}"
            )


HEADER = ["quantity", "unit", "element", "values", "MAE", "RMSE", "R2"]


def error_rows(found: dict[str, Comparison]) -> list[list[Any]]:
    """Rows of the table, by quantity and, where atoms have labels, by element."""
    from ase.data import chemical_symbols

    rows: list[list[Any]] = []
    for name, entry in found.items():
        quantity = QUANTITIES[name]
        sets = [(quantity.unit, "all", entry.values())]
        if name == "energy":
            sets.insert(0, (ENERGY_PER_ATOM, "all", entry.per_atom()))
        if quantity.per_atom:
            for number in sorted({int(z) for numbers in entry.numbers for z in numbers}):
                values = entry.of_element(number)
                sets.append((quantity.unit, chemical_symbols[number], values))
        for unit, element, (reference, predicted) in sets:
            measures = ErrorMeasures.of(reference, predicted)
            mae, rmse = quantity.factor * measures.mae, quantity.factor * measures.rmse
            rows.append([name, unit, element, measures.count, mae, rmse, measures.r2])
    return rows


def _calculator(args: argparse.Namespace) -> Calculator:
    """Of a MultipoleMACE, or upstream's of any other MACE."""
    from mace_polmp.calculators.checks import expand
    from mace_polmp.calculators.loading import calculator_of
    from mace_polmp.modules import MultipoleMACE
    from mace_polmp.modules.heads import check_head
    from mace_polmp.modules.io import check_device, check_format, load_any

    paths = expand(args.model)
    if len(paths) > 1:
        return make_calculator(args)
    model = load_any(paths[0])
    if isinstance(model, MultipoleMACE):
        check_format(model, paths[0])
        return make_calculator(args, models=[model])
    check_head(args.head, getattr(model, "heads", ["Default"]))
    check_device(args.device)
    return calculator_of(model, args.device, args.default_dtype, args.head)


def _print(rows: list[list[Any]], n_frames: int) -> None:
    texts = [
        [*words, significant(mae, 4), significant(rmse, 4), r_squared(r2)]
        for *words, mae, rmse, r2 in rows
    ]
    print(f"{n_frames} structures")
    print(text_table([*HEADER[:-1], "R²"], texts))


def _print_offset(entry: Comparison) -> None:
    """What energies are off by in the mean, and their error about that."""
    offset, rest = _offset(entry)
    print(
        f"energies: predictions minus labels {significant(offset)} {ENERGY_PER_ATOM} in the mean, "
        f"RMSE about that {significant(rest)} {ENERGY_PER_ATOM}"
    )


def _offset(entry: Comparison) -> tuple[float, float]:
    """Mean of prediction minus label, and RMSE about it, meV/atom."""
    reference, predicted = entry.per_atom()
    errors = QUANTITIES["energy"].factor * (predicted - reference)
    return float(errors.mean()), float(errors.std())


def _print_sum_rule(entry: Comparison) -> None:
    sums = [np.abs(charges.sum(0)).max() / len(charges) for charges in entry.predicted]
    print(f"acoustic sum rule: |sum of Born charges| per atom at most {max(sums):.2e} e")


def _draw(path: Path, name: str, entry: Comparison, source: tuple[str, str]) -> None:
    """Parity of a quantity; of energies, which are large next to their spread, about their means.

    What the means differ by is said above the picture.
    """
    from ase.data import chemical_symbols

    quantity = QUANTITIES[name]
    if quantity.per_atom:
        numbers = sorted({int(z) for numbers in entry.numbers for z in numbers})
        groups = {chemical_symbols[z]: entry.of_element(z) for z in numbers}
    else:
        groups = {name: entry.per_atom() if name == "energy" else entry.values()}
    unit = ENERGY_PER_ATOM if name == "energy" else quantity.unit
    scaled = {key: (quantity.factor * a, quantity.factor * b) for key, (a, b) in groups.items()}
    said = ""
    if name == "energy":
        reference, predicted = scaled[name]
        scaled = {name: (reference - reference.mean(), predicted - predicted.mean())}
        said = f", offset {significant(_offset(entry)[0])} {unit} taken off"
    every = ErrorMeasures.of(*(np.concatenate(x) for x in zip(*scaled.values(), strict=True)))
    words = {"born_charges": "Born charge"}.get(name, name)
    label = with_unit(f"{words} − mean" if name == "energy" else words, unit)
    errors = f"RMSE {significant(every.rmse)} {unit}, R² {r_squared(every.r2)}{said}"
    title = plots.heading(errors.replace("-", "−"), *source, columns=60)
    plots.draw_parity(path, label, scaled, title)
