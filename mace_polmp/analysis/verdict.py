"""A verdict on the charges of a trained model, in words: physical, small, reversed or unclear.

Energies and forces know only products of charges, and what a network takes over from them is not
determined at all: a model can be accurate and have charges that mean nothing. What follows looks at
them as a chemist would. All functions take arrays and know nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mace_polmp.analysis.correlation import Array

PHYSICAL, SMALL, LARGE = "physical", "small", "large"
REVERSED, UNCLEAR, UNKNOWN = "reversed", "unclear", "cannot be judged"

# The rules, in words in the README. Slopes: of predictions against labels, through the origin.
SLOPE = (0.6, 1.5)
"""Within these limits a slope of dipoles or Born charges is called physical."""
SCREENED = 0.5
"""Born charges of periodic structures may be smaller by this, where nobody has said how the medium
screens them: the root of an electronic permittivity of 4."""
NOTHING = 0.15
"""Below this size a slope has no sign worth mentioning."""
CORRELATION = 0.7
"""From here on predictions follow labels."""
ORDER = 0.3
"""From here on charges follow electronegativities: atoms of one element differ, so it is low."""
SIZE = (0.25, 4.0)
"""Limits of the spread of charges, in units of the usual one."""
NET = 0.3
"""Molecules may have this much charge, RMS, in units of the spread of the charges of atoms."""
USUAL_BORN, USUAL_LATENT = 1.0, 0.5
"""e for each unit of Pauling's scale that an atom differs from the mean of its structure.

Born charges of water spread by 0.7 times the electronegativities, of small molecules by 1.0, of
dipeptides by 1.2, of ionic crystals by 3; charges of GFN2-xTB in dipeptides by 0.48.
"""
LEAST_DIFFERENCE = 0.2
"""Pauling's scale: below this spread of electronegativities there is nothing to judge by."""
_FEWEST = 3  # labelled structures; the fit of fewer says little


@dataclass
class Observed:
    """What a model says of some structures, and what labels say.

    Attributes:
        numbers: atomic numbers, by structure.
        charges: [n_atoms] e, by structure.
        moving: [n_atoms] e, by structure: the charge that moves with an atom, a third of the trace
            of its Born charges, which has the part of atomic dipoles in it; None where it was not
            computed.
        molecules: number of the neutral molecule of each atom, by structure; -1 where it is in
            none.
        total_charges: e, by structure; 0 where nothing is said.
        periodic: whether any direction of it is, by structure.
        dipoles: pairs (label, predicted), [3] e Å each.
        born_charges: pairs, [n_atoms, 3, 3] e each.
        born_periodic: whether the structure is periodic, for each of these pairs.
    """

    numbers: list[np.ndarray] = field(default_factory=list)
    charges: list[Array] = field(default_factory=list)
    moving: list[Array | None] = field(default_factory=list)
    molecules: list[np.ndarray] = field(default_factory=list)
    total_charges: list[float] = field(default_factory=list)
    periodic: list[bool] = field(default_factory=list)
    dipoles: list[tuple[Array, Array]] = field(default_factory=list)
    born_charges: list[tuple[Array, Array]] = field(default_factory=list)
    born_periodic: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """The numbers that a verdict rests on; NaN where there is none.

    Attributes:
        spread: RMS deviation of charges from the mean of their structure, e: of those that move
            with the atoms if they are known, else of latent ones.
        expected: the same of charges that electronegativities would give, e.
        differ: the spread of electronegativities themselves.
        order: correlation of charges and how electropositive their elements are, both as deviations
            from the mean of their structure; above 0 if signs are right.
        are_born: whether these are the charges that move.
        net: RMS charge of neutral molecules, e.
        molecules: how many of them there are.
        dipole, born: slope and correlation against labels.
        n_dipoles, n_born: labelled structures.
        any_periodic: whether some structures are periodic.
        born_screened: whether all structures with Born charges are periodic.
    """

    spread: float
    expected: float
    differ: float
    order: float
    are_born: bool
    net: float
    molecules: int
    dipole: tuple[float, float]
    born: tuple[float, float]
    n_dipoles: int
    n_born: int
    any_periodic: bool
    born_screened: bool


@dataclass(frozen=True)
class Verdict:
    """What to tell the user.

    Attributes:
        word: PHYSICAL, SMALL, LARGE, REVERSED, UNCLEAR or UNKNOWN.
        seen: what was seen, in words.
        advice: what to do; empty if nothing.
    """

    word: str
    seen: str
    advice: str

    def text(self, note: str = "") -> str:
        """Lines for a log or the screen.

        Args:
            note: said after the verdict, such as what it rests on.
        """
        charges = self.word if self.word == UNKNOWN else f"look {self.word}"
        lines = [f"Verdict: charges {charges}" + (note and f" ({note})"), f"seen: {self.seen}"]
        lines += [f"what to do: {self.advice}"] if self.advice else []
        return "\n  ".join(lines)


def slope_of(reference: Array, predicted: Array) -> float:
    """The factor by which predictions differ from references: the best line through the origin."""
    reference, predicted = np.ravel(reference), np.ravel(predicted)
    size = float(reference @ reference)
    return float(reference @ predicted) / size if size > 1e-20 else float("nan")


def _cosine(one: Array, other: Array) -> float:
    """As a correlation, of values that are 0 on average for a reason, such as components."""
    a, b = np.ravel(one), np.ravel(other)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 else float("nan")


def find(observed: Observed, electropositivity: Sequence[float]) -> Findings:
    """The numbers that the verdict rests on.

    Args:
        observed: structures, charges and labels.
        electropositivity: minus Pauling's electronegativity, by atomic number, 0 where unknown.
    """
    scale = np.asarray(electropositivity)
    are_born = any(values is not None for values in observed.moving)
    charges, positivities = [np.zeros(0)], [np.zeros(0)]
    for numbers, values in zip(
        observed.numbers, observed.moving if are_born else observed.charges, strict=True
    ):
        known = scale[numbers] != 0
        if values is not None and known.any():
            charges.append(values[known] - values[known].mean())
            positivities.append(scale[numbers][known] - scale[numbers][known].mean())
    q, positivity = np.concatenate(charges), np.concatenate(positivities)
    net = [
        float(found[labels == label].sum())
        for found, labels, total in zip(
            observed.charges, observed.molecules, observed.total_charges, strict=True
        )
        for label in set(labels.tolist()) - {-1}
        if total == 0.0
    ]
    return Findings(
        spread=_rms(q),
        expected=(USUAL_BORN if are_born else USUAL_LATENT) * _rms(positivity),
        differ=_rms(positivity),
        order=_cosine(q, positivity),
        are_born=are_born,
        net=_rms(np.array(net)),
        molecules=len(net),
        dipole=_against(observed.dipoles),
        born=_against([_traceful(pair) for pair in observed.born_charges]),
        n_dipoles=len(observed.dipoles),
        n_born=len(observed.born_charges),
        any_periodic=any(observed.periodic),
        born_screened=all(observed.born_periodic) and bool(observed.born_periodic),
    )


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else float("nan")


def moving_charges(born_charges: Array) -> Array:
    """The charge that moves with each atom, e: a third of the trace of [n_atoms, 3, 3]."""
    found: Array = np.einsum("nii->n", np.asarray(born_charges)) / 3.0
    return found


def _traceful(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    return moving_charges(pair[0]), moving_charges(pair[1])


def _against(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    if not pairs:
        return float("nan"), float("nan")
    label, predicted = (
        np.concatenate([np.ravel(x) for x in side]) for side in zip(*pairs, strict=True)
    )
    return slope_of(label, predicted), _cosine(label, predicted)


def judge(found: Findings) -> Verdict:
    """The verdict. Labels decide where there are any; otherwise electronegativities do."""
    has_labels = found.n_dipoles >= _FEWEST or found.n_born >= 1
    if not has_labels and not found.differ > LEAST_DIFFERENCE:
        return Verdict(
            UNKNOWN,
            "the elements hardly differ in electronegativity, and no structure has a dipole or "
            "Born charges to compare with",
            "A few structures with such labels would tell.",
        )
    word = _word_by_labels(found) if has_labels else _word_by_elements(found)
    if word == PHYSICAL and found.molecules and found.net > NET * found.spread:
        return Verdict(UNCLEAR, _seen(found), _ADVICE["net"])
    return Verdict(word, _seen(found), _ADVICE[word])


def _word_by_labels(found: Findings) -> str:
    """What labels say: signs first, then whether predictions follow them, then the size."""
    screening = SCREENED if found.born_screened else 1.0
    kinds = (
        (found.dipole, found.n_dipoles, _FEWEST, SLOPE[0]),
        (found.born, found.n_born, 1, SLOPE[0] * screening),
    )
    known = [
        (*pair, low)
        for pair, count, least, low in kinds
        if count >= least and np.isfinite(pair).all()
    ]
    if not known:  # charges that are exactly 0 have no correlation with anything
        return SMALL if found.spread < 1e-6 else UNCLEAR
    # |slope / correlation| is how large predictions are, RMS, in units of the labels. What is as
    # large as the labels and has a small slope does not follow them.
    are_less = all(abs(slope) < abs(r) or r >= CORRELATION for slope, r, _ in known)
    if are_less and all(abs(slope) < NOTHING for slope, _, _ in known):
        return SMALL
    if all(r < -ORDER for _, r, _ in known):
        return REVERSED
    if are_less and all(-NOTHING < slope < low for slope, _, low in known):
        return SMALL
    if any(r < CORRELATION for _, r, _ in known):
        return UNCLEAR
    if any(slope < low for slope, _, low in known):
        return SMALL
    return LARGE if any(slope > SLOPE[1] for slope, _, _ in known) else PHYSICAL


def _word_by_elements(found: Findings) -> str:
    """What electronegativities say: the size first, as next to nothing has no sign."""
    size = found.spread / found.expected
    if size < SIZE[0]:
        return SMALL
    if found.order < ORDER:
        return REVERSED if found.order < -ORDER else UNCLEAR
    return LARGE if size > SIZE[1] else PHYSICAL


def _seen(found: Findings) -> str:
    """The numbers, in words."""
    kind = "charges that move with the atoms (Born)" if found.are_born else "latent charges"
    parts = [f"{kind} vary by {found.spread:.2f} e within a structure"]
    if found.differ > LEAST_DIFFERENCE:
        signs = "go against" if found.order < -ORDER else "follow"
        signs = "do not follow" if abs(found.order) < ORDER else signs
        parts[0] += f" (usual for these elements: about {found.expected:.2f} e)"
        parts.append(f"they {signs} electronegativities (correlation {found.order:.2f})")
    if found.molecules:
        parts.append(f"neutral molecules have a net charge of {found.net:.2f} e (RMS)")
    for name, (slope, r), count in (
        ("dipoles", found.dipole, found.n_dipoles),
        ("Born charges", found.born, found.n_born),
    ):
        if count:
            parts.append(
                f"{name} are {slope:.2f} times the labels of {count} structures (correlation "
                f"{r:.2f})"
            )
    if not found.n_dipoles and not found.n_born:
        parts.append("no structure has a dipole or Born charges to compare with")
    if found.any_periodic:
        parts.append(
            "in periodic structures latent charges are the physical ones divided by the root of "
            "the electronic permittivity (--epsilon_infinity)"
        )
    return "; ".join(parts)


_MORE_LABELS = (
    "give dipoles or Born charges of some structures with --dipole_weight or "
    "--born_charges_weight: true ones of a few, or borrowed ones (mace_polmp label)"
)
_ADVICE = {
    PHYSICAL: "",
    SMALL: "Energies and forces may be good all the same; dipoles and spectra are not. "
    f"To mend it, {_MORE_LABELS}; or train longer, or from scratch with --head_warmup_epochs.",
    LARGE: f"Dipoles and spectra will be too large. To mend it, {_MORE_LABELS}; or train longer.",
    REVERSED: "Energies and forces do not depend on this sign; dipoles and Born charges have the "
    f"wrong one. To mend it, {_MORE_LABELS}; or train again with another --seed or "
    "--head_warmup_epochs.",
    UNCLEAR: f"Do not trust dipoles and spectra. To mend it, {_MORE_LABELS}; or train longer, or "
    "with --head_warmup_epochs.",
    "net": "Signs and sizes are right, but molecules that should be neutral are not: their dipoles "
    "depend on where they are. Train longer, or with --constrain_charge softness.",
}
