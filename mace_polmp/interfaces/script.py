"""LAMMPS input scripts with the pair style mace_polmp, which LAMMPS itself does not have."""

from __future__ import annotations

from dataclasses import dataclass

from mace_polmp.errors import InputError

PAIR_STYLE = "mace_polmp"
# What would take the model away, or neighbours that it needs.
_REFUSED = ("clear", "kspace_style", "neighbor", "neigh_modify", "comm_modify")
_RUNS = ("run", "minimize", "rerun")
# What would see energies or stresses of atoms that the model does not give.
_ATOM_ENERGY = "pe/atom"
_ATOM_STRESS = ("stress/atom", "centroid/stress/atom", "heat/flux", "stress/cartesian")
# Fixes that ask the pair style for energies, which has none.
_PAIR_ENERGY = ("gcmc", "widom", "atom/swap", "mol/swap", "charge/regulation", "sgcmc", "qeq")


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


def split_script(text: str, where: str, with_energies: bool = False) -> Script:
    """Find the place of the model.

    The model is attached at the line `pair_coeff * * H O` that follows `pair_style mace_polmp`;
    without these lines before the first run.

    Args:
        text: of the script.
        where: its name, for messages.
        with_energies: whether energies of atoms are given to LAMMPS.

    Raises:
        InputError: pair_style mace_polmp without pair_coeff, another pair style, no run at all, a
            command whose results would not be the model's, or a loop around the place of the model.
    """
    lines = _joined(text)
    words = [_words(line) for line in lines]
    styles = [n for n, w in enumerate(words) if w[:1] == ["pair_style"]]
    for number in styles:
        if words[number][1:2] != [PAIR_STYLE]:
            raise InputError(
                f"{where}: line {number + 1} has pair_style {' '.join(words[number][1:2])}; "
                f"energies are the model's alone: write pair_style {PAIR_STYLE}, or leave it out"
            )
    for number, found in enumerate(words):
        if found[:1] and (found[0] in _REFUSED or found[:2] == ["run_style", "respa"]):
            raise InputError(
                f"{where}: line {number + 1}: {' '.join(found[:2])} does not work with a model; "
                "leave it out"
            )
        _check_results(found, f"{where}: line {number + 1}", with_energies)
    if styles:
        coefficients = [n for n, w in enumerate(words) if w[:1] == ["pair_coeff"]]
        if len(coefficients) != 1 or words[coefficients[0]][1:3] != ["*", "*"]:
            raise InputError(
                f"{where}: pair_style {PAIR_STYLE} needs one line such as pair_coeff * * H O, with "
                "the elements of the atom types"
            )
        place = coefficients[0]
        _check_loops(words, place, where)
        elements = tuple(words[place][3:])
        before = [line for n, line in enumerate(lines[:place]) if n not in styles]
        return Script(_text(before), elements, _text(lines[place + 1 :]))
    runs = [n for n, w in enumerate(words) if w[:1] and w[0] in _RUNS]
    if not runs:
        raise InputError(f"{where}: has no run and no pair_style {PAIR_STYLE}; nothing to do")
    return Script(_text(lines[: runs[0]]), (), _text(lines[runs[0] :]))


def _check_results(words: list[str], where: str, with_energies: bool) -> None:
    """Refuse a command whose numbers would be wrong without a word.

    Raises:
        InputError: names it.
    """
    style = words[3] if len(words) > 3 else ""
    if words[:1] == ["compute"] and style in _ATOM_STRESS:
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


def _check_loops(words: list[list[str]], place: int, where: str) -> None:
    """Refuse a jump from behind the place of the model to a label before it.

    Raises:
        InputError: names the label.
    """
    before = {w[1] for w in words[:place] if w[:1] == ["label"] and len(w) > 1}
    for number, found in enumerate(words[place:], start=place):
        if found[:1] == ["jump"] and len(found) > 2 and found[2] in before:
            raise InputError(
                f"{where}: line {number + 1} jumps to label {found[2]}, before pair_coeff: the "
                "model is attached once; put the label after pair_coeff"
            )


def _joined(text: str) -> list[str]:
    """Lines, those that end with & together with the next."""
    lines: list[str] = []
    open_line = False
    for line in text.splitlines():
        if open_line:
            lines[-1] = lines[-1].rstrip()[:-1] + " " + line
        else:
            lines.append(line)
        open_line = lines[-1].split("#")[0].rstrip().endswith("&")
    return lines


def _words(line: str) -> list[str]:
    return line.split("#")[0].split()


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
