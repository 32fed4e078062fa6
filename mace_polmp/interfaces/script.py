"""LAMMPS input scripts with the pair style mace_polmp, which LAMMPS itself does not have."""

from __future__ import annotations

from dataclasses import dataclass

from mace_polmp.errors import InputError

PAIR_STYLE = "mace_polmp"
# What would take the model away, or neighbours that it needs.
_REFUSED = ("clear", "kspace_style", "neighbor", "neigh_modify", "comm_modify")
_RUNS = ("run", "minimize", "rerun")


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


def split_script(text: str, where: str) -> Script:
    """Find the place of the model.

    The model is attached at the line `pair_coeff * * H O` that follows `pair_style mace_polmp`;
    without these lines before the first run.

    Args:
        text: of the script.
        where: its name, for messages.

    Raises:
        InputError: pair_style mace_polmp without pair_coeff, another pair style, or no run at all.
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
    if styles:
        coefficients = [n for n, w in enumerate(words) if w[:1] == ["pair_coeff"]]
        if len(coefficients) != 1 or words[coefficients[0]][1:3] != ["*", "*"]:
            raise InputError(
                f"{where}: pair_style {PAIR_STYLE} needs one line such as pair_coeff * * H O, with "
                "the elements of the atom types"
            )
        place = coefficients[0]
        elements = tuple(words[place][3:])
        before = [line for n, line in enumerate(lines[:place]) if n not in styles]
        return Script(_text(before), elements, _text(lines[place + 1 :]))
    runs = [n for n, w in enumerate(words) if w[:1] and w[0] in _RUNS]
    if not runs:
        raise InputError(f"{where}: has no run and no pair_style {PAIR_STYLE}; nothing to do")
    return Script(_text(lines[: runs[0]]), (), _text(lines[runs[0] :]))


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
