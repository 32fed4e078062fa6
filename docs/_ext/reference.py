"""Pages of the reference that are made from the code: flags, commands, labels and results.

They are written into docs/reference when a build begins, where git ignores them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

Row = Sequence[str]

# What the results of a calculator are, by name; the units of labels are those of quantities.py.
_RESULTS = {
    "energy": "energy",
    "free_energy": "the same, for programs that ask for this name",
    "forces": "forces",
    "stress": "stress, in ASE's order xx, yy, zz, yz, xz, xy",
    "charges": "charges of the atoms, permanent plus induced; they sum to the total charge only "
    "where the model constrains them",
    "atomic_dipoles": "dipoles of the atoms, permanent plus induced",
    "atomic_quadrupoles": "quadrupoles of the atoms, symmetric and traceless",
    "atomic_polarizabilities": "polarizabilities of the atoms",
    "dipole": "Σ (q r + μ) about the origin of the coordinates, from − to +; of a periodic "
    "structure only its changes mean something",
    "polarizability": "sum of the polarizabilities of the atoms",
    "long_range_energy": "energy of the multipoles and their response, a part of the energy",
    "energies": "energies of the atoms, long-range part included",
    "born_charges": "Born effective charges, [atom, polarization, displacement]",
    "electronic_polarizability": "polarizability with local fields; of a periodic structure "
    "that of the cell, eps0 V (ε∞ − 1)",
    "electronic_permittivity": "ε∞ of a periodic structure, of its induced dipoles and the "
    "screening of its charges",
    "zero_field_energy": "energy without the external field",
}
_UNITS = {
    "energy": "eV",
    "free_energy": "eV",
    "charges": "e",
    "atomic_dipoles": "e Å",
    "atomic_quadrupoles": "e Å²",
    "atomic_polarizabilities": "e² Å²/eV",
    "polarizability": "e² Å²/eV",
    "long_range_energy": "eV",
    "energies": "eV",
    "electronic_permittivity": "1",
    "zero_field_energy": "eV",
}
_SHAPES = {
    "energy": "number",
    "free_energy": "number",
    "stress": "[6]",
    "energies": "[n_atoms]",
    "electronic_polarizability": "[3, 3]",
    "electronic_permittivity": "[3, 3]",
    "zero_field_energy": "number",
}


def plain(text: str) -> str:
    """Text of a help or docstring as Markdown: flags and names of the code as code."""
    parts = re.split(r"(`[^`]*`|--\w[\w-]*|\b\w+_\w+\b)", text)
    for number, part in enumerate(parts):
        if number % 2:
            parts[number] = part if part.startswith("`") else f"`{part}`"
        else:
            parts[number] = re.sub(r"([\\*_<>$\[\]|{}])", r"\\\1", part)
    return "".join(parts)


def code(text: str) -> str:
    """Text as code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: Any) -> str:
    """A default as one would type it."""
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def shown_default(action: argparse.Action) -> str:
    """The default of a flag as a user would type it; a dash where there is none."""
    value = action.default
    if action.required:
        return "required"
    if isinstance(action, argparse._StoreTrueAction):
        return "off"
    if value in (None, argparse.SUPPRESS, []):
        return "–"
    if isinstance(value, list | tuple):
        return code(" ".join(map(str, value)))
    return code(number(value))


def shown_flag(action: argparse.Action) -> str:
    """A flag with what follows it, such as --field X Y Z; a positional argument by its name."""
    formatter = argparse.HelpFormatter("", width=10_000)
    if not action.option_strings:
        return action.metavar if isinstance(action.metavar, str) else action.dest
    value = "" if action.nargs == 0 else formatter._format_args(action, "VALUE")
    value = re.sub(r"^(.+) \[\1 \.\.\.\]$", r"\1 ...", value)
    return f"{action.option_strings[-1]} {value}".strip()


def flag_rows(actions: Iterable[argparse.Action], anchor: str) -> list[Row]:
    """Rows of flags, each with an anchor: flag, default, meaning."""
    rows = []
    for action in actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        name = f"[{code(shown_flag(action))}]{{#{anchor}{action.dest.replace('_', '-')}}}"
        rows.append((name, shown_default(action), plain((action.help or "").replace("%%", "%"))))
    return rows


def usage(parser: argparse.ArgumentParser) -> str:
    """The command with what it needs."""
    needed = [a for a in parser._actions if a.required and a.option_strings]
    places = [a for a in parser._actions if not a.option_strings]
    return " ".join([parser.prog, *map(shown_flag, [*places, *needed]), "[options]"])


def described(parser: argparse.ArgumentParser, anchor: str) -> str:
    """What a command is for, how it is called, and its flags in their groups."""
    out = [plain(parser.description or ""), f"```text\n{usage(parser)}\n```"]
    for group in parser._action_groups:
        rows = flag_rows(group._group_actions, anchor)
        if rows:
            first = {"positional arguments": "argument", "options": "flag"}
            title = first.get(group.title or "", f"flag ({group.title})")
            out.append(table((title, "default", "meaning"), rows))
    return "\n\n".join(out)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a command's subcommands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def commands_page() -> str:
    """Every command with its flags."""
    from mace_polmp.cli import eval_configs
    from mace_polmp.cli.main import build_parser

    parser = build_parser()
    commands = subcommands(parser)
    summaries = {a.dest: a.help or "" for a in parser._actions[-1]._get_subactions()}
    out = [
        "# Commands",
        "Every command with its flags and their defaults. `COMMAND --help` prints the same. A "
        "command that cannot do what it was asked to ends with one line on standard error and "
        "exit status 1.",
        table(
            ("command", "what it does"),
            [
                (f"[`mace_polmp {name}`](#command-{name})", plain(summaries[name]))
                for name in commands
            ]
            + [
                ("[`mace_run_train`](flags.md)", "trains a model"),
                ("[`mace_eval_configs`](#command-mace-eval-configs)", "writes a model's results"),
            ],
        ),
    ]
    for name, command in commands.items():
        anchor = f"{name}-"
        out += [f"(command-{name})=\n## {command.prog}", described(command, anchor)]
    own = eval_configs.build_parser()
    out += [
        "(command-mace-eval-configs)=\n## mace_eval_configs",
        "mace-torch's command, which also writes the electrical outputs of a MultipoleMACE. Its "
        "own flags are printed by `mace_eval_configs --help`; there is one more for MultipoleMACE "
        "models:",
        table(("flag", "default", "meaning"), flag_rows(own._actions, "eval-configs-")),
        "`mace_polmp_eval_configs` is the same command under a name that nothing else installs.",
    ]
    return "\n\n".join(out)


def option_rows(options: type, actions: dict[str, argparse.Action]) -> list[Row]:
    """Rows of the flags of a dataclass of options, with the defaults of its fields."""
    rows = []
    for field in fields(options):
        if "help" not in field.metadata:
            continue
        action = actions[field.name]
        choices = field.metadata["choices"]
        value = "{" + ",".join(map(str, choices)) + "}" if choices else "VALUE"
        flag = f"--{field.name}" + ("" if action.nargs == 0 else f" {value}")
        default = "–" if field.default is None else code(number(field.default))
        default = "off" if field.metadata["type"] is None else default
        anchor = field.name.replace("_", "-")
        rows.append((f"[{code(flag)}]{{#{anchor}}}", default, plain(field.metadata["help"])))
    return rows


def flags_page() -> str:
    """The flags that mace_polmp adds to mace_run_train."""
    from mace_polmp.cli.run_train import MODEL_NAME, build_parser
    from mace_polmp.head.options import LongRangeOptions
    from mace_polmp.training.flags import EXPECTED
    from mace_polmp.training.options import TrainingOptions

    actions = {action.dest: action for action in build_parser()._actions}
    header = ("flag", "default", "meaning")
    note = f"with --model {MODEL_NAME}"
    changed = [a for name, a in actions.items() if note in (a.help or "") and name != "model"]
    return "\n\n".join(
        [
            "# Flags of mace_run_train",
            "`mace_run_train` is mace-torch's command with one more model, `--model "
            f"{MODEL_NAME}`, and the flags of this page. All other flags are mace-torch's and "
            "printed by `mace_run_train --help`. Each may also stand in the file of `--config`, "
            "without the dashes. `mace_polmp_run_train` is the same command under a name that "
            "nothing else installs.",
            "(flags-long-range)=\n## Long-range electrostatics",
            "Lengths are in Å.",
            table(header, option_rows(LongRangeOptions, actions)),
            "(flags-labels)=\n## Electrical labels and fine-tuning",
            table(header, option_rows(TrainingOptions, actions)),
            "(flags-changed)=\n## Flags of mace-torch with another default",
            f"With `--model {MODEL_NAME}` these flags have other defaults. With other models they "
            "keep those of mace-torch.",
            table(
                ("flag", "meaning"),
                [(code(shown_flag(action)), plain(action.help or "")) for action in changed],
            ),
            "(flags-checked)=\n## Values that are checked",
            f"With `--model {MODEL_NAME}` a value that no training can use is refused before "
            "anything is written.",
            table(
                ("flags", "must be"),
                [(", ".join(code(f"--{n}") for n in names), words) for words, _, names in EXPECTED],
            ),
        ]
    )


def shape_of(per_atom: bool, shape: tuple[int, ...]) -> str:
    """A shape as the documentation writes it."""
    return (
        str(["n_atoms", *shape] if per_atom else list(shape)).replace("'", "")
        if (per_atom or shape)
        else "number"
    )


def _trained(quantity: Any) -> str:
    """Structures in which models are trained on a label."""
    usual, bonds = ", ".join(quantity.trained), ", ".join(quantity.bonds)
    return "; ".join(filter(None, [usual, bonds and f"with bond charges {bonds}"]))


def label_rows() -> list[Row]:
    """Rows of the labels of training and evaluation."""
    from mace_polmp.cli.run_train import build_parser
    from mace_polmp.quantities import LABELS
    from mace_polmp.training.options import TrainingOptions

    parser, own = build_parser(), {field.name: field.default for field in fields(TrainingOptions)}
    rows = []
    for name, quantity in LABELS.items():
        flag = f"{name}_weight"
        weight = own.get(flag, parser.get_default(flag))
        rows.append(
            (
                code(name),
                code(quantity.key),
                quantity.label_unit,
                shape_of(quantity.per_atom, quantity.shape),
                _trained(quantity),
                f"{weight:g}",
            )
        )
    return rows


def result_rows() -> list[Row]:
    """Rows of the results of the calculator.

    Raises:
        KeyError: a result that has no text here.
    """
    from mace_polmp.calculators.on_demand import ON_DEMAND
    from mace_polmp.modules.model import ELECTRICAL_OUTPUTS
    from mace_polmp.quantities import QUANTITIES

    by_result = {quantity.result: quantity for quantity in QUANTITIES.values()}
    names = ["energy", "free_energy", "forces", "stress", *ELECTRICAL_OUTPUTS, *ON_DEMAND]
    rows = []
    for name in (*names, "zero_field_energy"):
        unit = _UNITS.get(name) or by_result[name].label_unit
        if name in _SHAPES:
            shape = _SHAPES[name]
        elif name in ELECTRICAL_OUTPUTS:
            shape = shape_of(*ELECTRICAL_OUTPUTS[name])
        else:
            shape = shape_of(by_result[name].per_atom, by_result[name].shape)
        asked = " (only where asked for by name)" if name in ON_DEMAND else ""
        rows.append((code(name), shape, unit, _RESULTS[name] + asked))
    return rows


def labels_page() -> str:
    """Labels of files and results of calculators."""
    return "\n\n".join(
        [
            "# Labels and results",
            "What a training file may say of each structure, and what a model says of it.",
            "(reference-labels)=\n## Labels",
            "A key is the name of a label in an extended XYZ file. A label that belongs to atoms "
            "is a column of the file, one of the structure is in its comment line. With the name "
            "of a label, `--NAME_key` gives it another key, and `--NAME_weight` its weight in the "
            "loss, such as `--born_charges_key` and `--born_charges_weight`. The table has the "
            "defaults; a label with the weight 0 is not used. A model is trained on a label in "
            "structures with the boundary conditions of the table only: open (`pbc` F F F), "
            "slab (T T F, in any order) or periodic (T T T). In other structures a label that a "
            "training uses is refused, unless its frame gives it the weight 0.",
            table(
                ("label", "key", "unit", "shape", "structures", "weight"),
                label_rows(),
            ),
            "Tensors may be nine numbers (xx, xy, xz, yx, …), stresses and virials "
            "also the six of ASE's order (xx, yy, zz, yz, xz, xy). Born charges "
            "are nine columns, polarization first: ∂P_x/∂x, ∂P_x/∂y, …",
            "(reference-results)=\n## Results of a model",
            "Under these names `MultipoleMACECalculator` has its results. `mace_eval_configs` "
            "writes those that need not be asked for with `MACE_` before the name, and with "
            "`--compute_bec` Born charges as `MACE_BEC`; and `MACE_electronic_polarizability`.",
            table(("result", "shape", "unit", "meaning"), result_rows()),
        ]
    )


PAGES = {"flags": flags_page, "commands": commands_page, "labels": labels_page}


def write_pages(folder: Path) -> None:
    """Write all pages; those that have not changed are left alone, so that builds stay quick."""
    for name, make in PAGES.items():
        path, text = folder / f"{name}.md", make().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _begin(app: Sphinx) -> None:
    write_pages(Path(app.srcdir) / "reference")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for files."""
    app.connect("builder-inited", _begin)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
