"""LAMMPS input scripts with the pair style mace_polmp, which LAMMPS itself does not have."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mace_polmp.errors import InputError

PAIR_STYLE = "mace_polmp"
# What would take the model away, or neighbours that it needs.
_REFUSED = ("clear", "kspace_style", "neighbor", "neigh_modify", "comm_modify")
_RUNS = ("run", "minimize", "rerun")
# What would see energies or stresses of atoms that the model does not give.
_ATOM_ENERGY = "pe/atom"
_ATOM_STRESS = ("stress/", "centroid/stress/atom", "heat/flux", "force/tally", "pe/tally")
# What would take energies or forces of pairs, or of a changed structure, from the pair style.
_PAIR_COMPUTES = ("group/group", "pair", "fep", "ti", "born/matrix", "pair/local", "fep/ta")
# Fixes that ask the pair style for energies, which has none.
_PAIR_ENERGY = (
    "gcmc",
    "widom",
    "atom/swap",
    "mol/swap",
    "charge/regulation",
    "sgcmc",
    "qeq",
    "numdiff",
    "adapt",
)
_DEEPEST = 20  # files that include each other
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w))")


@dataclass(frozen=True)
class Script:
    """An input script in two parts, between which a model is attached.

    Attributes:
        before: commands that make box, atoms and masses.
        elements: of the atom types, as pair_coeff names them; empty where it does not.
        after: the rest.
    """

    before: str
    elements: tuple[str, ...]
    after: str


@dataclass(frozen=True)
class _Line:
    """A command of a script, and where it stands.

    Attributes:
        text: of the line.
        where: it stands.
        runs: whether it includes a file that runs.
    """

    text: str
    where: str
    runs: bool = False

    @property
    def words(self) -> list[str]:
        return self.text.split("#")[0].split()


def split_script(text: str, where: str, with_energies: bool = False) -> Script:
    """Find the place of the model.

    The model is attached at the line `pair_coeff * * H O` that follows `pair_style mace_polmp`;
    without these lines before the first run. Files that the script includes are put in its place.

    Args:
        text: of the script.
        where: its name, for messages.
        with_energies: whether energies of atoms are given to LAMMPS.

    Raises:
        InputError: pair_style mace_polmp without pair_coeff, another pair style, no run at all, a
            command whose results would not be the model's, or a loop around the place of the model.
    """
    lines = _with_included(_joined(text, where), with_energies, 0)
    styles = [n for n, line in enumerate(lines) if line.words[:1] == ["pair_style"]]
    if styles:
        coefficients = [n for n, line in enumerate(lines) if line.words[:1] == ["pair_coeff"]]
        if len(styles) > 1:
            raise InputError(f"{lines[styles[1]].where}: a second pair_style; leave it out")
        if len(coefficients) != 1 or lines[coefficients[0]].words[1:3] != ["*", "*"]:
            raise InputError(
                f"{where}: pair_style {PAIR_STYLE} needs one line such as pair_coeff * * H O, with "
                "the elements of the atom types"
            )
        place = coefficients[0]
        if any(line.runs for line in lines[:place]):
            raise InputError(f"{where}: a run before pair_coeff, which would be without the model")
        _check_loops(lines, place)
        elements = tuple(lines[place].words[3:])
        before = [line for n, line in enumerate(lines[:place]) if n not in styles]
        return Script(_text(before), elements, _text(lines[place + 1 :]))
    runs = [n for n, line in enumerate(lines) if line.runs]
    if not runs:
        raise InputError(f"{where}: has no run and no pair_style {PAIR_STYLE}; nothing to do")
    return Script(_text(lines[: runs[0]]), (), _text(lines[runs[0] :]))


def substituted(elements: Sequence[str], value_of: Callable[[str], str | None]) -> list[str]:
    """Elements with the variables of the script replaced by their values.

    Args:
        elements: as the script has them, such as H, ${second}.
        value_of: the value of a variable, None where there is none.

    Raises:
        InputError: a variable that is not defined.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        known = value_of(name)
        if known is None:
            raise InputError(f"pair_coeff: variable {name} is not defined")
        return known

    return [word for given in elements for word in _VARIABLE.sub(value, given).split()]


def _check_line(line: _Line, with_energies: bool) -> None:
    """Refuse what does not work with a model, or would give wrong numbers without a word.

    Raises:
        InputError: names the line.
    """
    words, where = line.words, line.where
    style = words[3] if len(words) > 3 else ""
    if words[:1] == ["pair_style"] and words[1:2] != [PAIR_STYLE]:
        raise InputError(
            f"{where} has pair_style {' '.join(words[1:2])}; energies are the model's alone: "
            f"write pair_style {PAIR_STYLE}, or leave it out"
        )
    if words[:1] and (words[0] in _REFUSED or words[:2] == ["run_style", "respa"]):
        raise InputError(f"{where}: {' '.join(words[:2])} does not work with a model; leave it out")
    if words[:1] == ["compute"] and style in _PAIR_COMPUTES:
        raise InputError(
            f"{where}: compute {style} asks the pair style, which has no energies; leave it out"
        )
    if words[:1] == ["compute"] and style.startswith(_ATOM_STRESS):
        raise InputError(
            f"{where}: compute {style} does not see the model, which has no stresses of atoms; "
            "leave it out"
        )
    if words[:1] == ["compute"] and style == _ATOM_ENERGY and not with_energies:
        raise InputError(
            f"{where}: compute {style} needs energies of atoms: run with --energies "
            "(energies=True in attach)"
        )
    if words[:1] == ["fix"] and style.startswith(_PAIR_ENERGY):
        raise InputError(
            f"{where}: fix {style} takes energies from the pair style, which has none here; "
            "leave it out"
        )


def _check_loops(lines: list[_Line], place: int) -> None:
    """Refuse a jump from behind the place of the model to a label before it.

    Raises:
        InputError: names the label.
    """
    firsts = [line.words for line in lines[:place]]
    before = {w[1] for w in firsts if w[:1] == ["label"] and len(w) > 1}
    for line in lines[place:]:
        words = line.words
        if words[:1] == ["jump"] and len(words) > 2 and words[2] in before:
            raise InputError(
                f"{line.where} jumps to label {words[2]}, before pair_coeff: the model is attached "
                "once; put the label after pair_coeff"
            )


def _with_included(lines: list[_Line], with_energies: bool, depth: int) -> list[_Line]:
    """Lines with those of included files in the place of `include`, all of them checked.

    Files with loops of their own, and names with variables, are left to LAMMPS.

    Raises:
        InputError: files that include each other, or what does not work with a model.
    """
    if depth > _DEEPEST:
        raise InputError(f"{lines[0].where}: files include each other; correct it")
    out: list[_Line] = []
    for line in lines:
        words = line.words
        path = Path(words[1].strip("\"'")) if words[:1] == ["include"] and words[1:] else None
        if path is None or not path.is_file():
            _check_line(line, with_energies)
            out.append(replace(line, runs=words[:1] != [] and words[0] in _RUNS))
            continue
        text = path.read_text(encoding="utf-8")
        inner = _with_included(_joined(text, str(path)), with_energies, depth + 1)
        commands = {found.words[0] for found in inner if found.words}
        if not commands & {"label", "jump", "next"}:
            out += inner
        elif commands & {"pair_style", "pair_coeff"}:
            raise InputError(
                f"{line.where}: {path} has pair_style or pair_coeff and a loop; put the pair lines "
                "into the script itself"
            )
        else:
            out.append(replace(line, runs=any(found.runs for found in inner)))
    return out


def _joined(text: str, where: str) -> list[_Line]:
    """Lines, those that end with & together with the next."""
    lines: list[_Line] = []
    open_line = False
    for number, line in enumerate(text.splitlines(), start=1):
        if open_line:
            last = lines[-1]
            lines[-1] = _Line(last.text.rstrip()[:-1] + " " + line, last.where)
        else:
            lines.append(_Line(line, f"{where}: line {number}"))
        open_line = lines[-1].text.split("#")[0].rstrip().endswith("&")
    return lines


def _text(lines: list[_Line]) -> str:
    return "\n".join(line.text for line in lines) + "\n"
