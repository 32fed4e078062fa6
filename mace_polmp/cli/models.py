"""`mace_polmp convert` and `mace_polmp info`: model files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mace_polmp.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the subcommands to those of `mace_polmp`."""
    convert = commands.add_parser(
        "convert",
        help="convert a model between .model (pickle) and .safetensors (runs no code), or a "
        "MACELES of mace-torch to either",
        description="Convert a MultipoleMACE between upstream's .model, a pickle, and "
        ".safetensors, weights and a configuration: loading the latter runs no code from the file. "
        "A .model file with a MACELES, mace-torch's MACE with latent charges, becomes a "
        "MultipoleMACE of the same energies; nothing in the file is run.",
    )
    convert.add_argument("source", type=Path, help=".model or .safetensors file to read")
    convert.add_argument("target", type=Path, help=".safetensors or .model file to write")
    convert.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    convert.set_defaults(run=run_convert)
    info = commands.add_parser("info", help="print what a model file holds")
    info.add_argument("model", type=Path, help=".model or .safetensors file")
    info.set_defaults(run=run_info)


def run_convert(args: argparse.Namespace) -> None:
    """Read one kind of file and write the other."""
    from mace_polmp.modules import safe_files
    from mace_polmp.modules.io import load_model, write_model
    from mace_polmp.reading import model_file
    from mace_polmp.upstream import maceles

    if args.target.exists() and not args.overwrite:
        raise InputError(f"{args.target} is there already; give --overwrite or another name")
    source = model_file(args.source)
    notes: tuple[str, ...] = ()
    is_safe = safe_files.is_safe(source) or source.suffix.lower() == safe_files.SUFFIX
    if is_safe or maceles.is_own(source):
        model = load_model(source)
    else:
        converted = maceles.convert(source)
        model, notes = converted.model, converted.notes
    write_model(model, args.target)
    size = args.target.stat().st_size / 1e6
    print(f"{args.source} -> {args.target} ({size:.1f} MB)")
    for note in notes:
        print(f"  {note}")


def run_info(args: argparse.Namespace) -> None:
    """Print the model's make."""
    from mace_polmp.modules import MultipoleMACE, safe_files
    from mace_polmp.modules.io import check_format, load_any
    from mace_polmp.reading import model_file

    if not safe_files.is_safe(model_file(args.model)):
        print(
            f"{args.model}: a pickle; reading it runs code from the file. If you do not trust its "
            "source, ask for a .safetensors file, which runs none.",
            flush=True,
        )
    model = load_any(args.model)
    if isinstance(model, MultipoleMACE):
        check_format(model, args.model)
    rows = describe(model)
    width = max(len(name) for name, _ in rows)
    print(args.model)
    for name, value in rows:
        print(f"  {name:{width}s}  {value}")


def describe(model: Any) -> list[tuple[str, str]]:
    """Name and value of what is worth knowing of a MACE model."""
    from dataclasses import fields

    from mace_polmp.modules import LongRangeOptions, MultipoleMACE
    from mace_polmp.modules.summary import dtype_name, elements_of, layers_of

    total = sum(p.numel() for p in model.parameters())
    rows = [
        ("kind", type(model).__name__),
        ("elements", elements_of(model)),
        ("r_max", f"{float(model.r_max):g} Å"),
        ("layers", str(len(model.interactions))),
        ("features by layer", layers_of(model)),
        ("interaction", type(model.interactions[-1]).__name__),
        ("heads", ", ".join(getattr(model, "heads", ["Default"]))),
        ("parameters", str(total)),
        ("dtype", dtype_name(model)),
    ]
    if isinstance(model, MultipoleMACE):
        head = sum(p.numel() for p in model.multipole_readouts.parameters())
        lift = model.multipole_readouts.lift
        rows += [
            ("format version", str(model.format_version)),
            ("long-range parameters", str(head)),
            ("trained on", " and ".join(model.trained_on.boundaries) or "not recorded"),
            ("total charge from", f"info[{model.trained_on.total_charge_key!r}]"),
            ("lifted degrees", "none" if lift is None else ", ".join(map(str, lift.degrees))),
        ]
        options = model.long_range_options
        values = {f.name: str(getattr(options, f.name)) for f in fields(LongRangeOptions)}
        if isinstance(options.epsilon_infinity, str):
            values["epsilon_infinity"] = f"{model.permittivity():.3f}, learned"
        rows += list(values.items())
    return rows
