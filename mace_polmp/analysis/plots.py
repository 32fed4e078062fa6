"""Pictures as PNG and SVG, and tables as CSV; each file is written to a temporary one first."""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.files import replacing

FORMATS = ("png", "svg")
"""Every picture is written in: one for slides, one for print and pages."""

_MANY_POINTS = 2000  # more of them are pixels in an SVG, which is small and quick to open then
_LABELS = 12  # sticks with a label, at most


@dataclass(frozen=True)
class Sticks:
    """Lines of a spectrum as sticks on an axis of their own, the larger ones with their place.

    Attributes:
        position: [n], on the common axis.
        height: [n].
        label: of their axis.
    """

    position: Array
    height: Array
    label: str


@dataclass(frozen=True)
class Band:
    """What surrounds a line by its error, and what to call it.

    Attributes:
        error: [n], half of its height at each point.
        label: in the legend.
    """

    error: Array
    label: str


def figure(
    n_panels: int = 1,
    size: tuple[float, float] = (7.0, 4.0),
    widths: Sequence[float] | None = None,
) -> tuple[Any, list[Any]]:
    """A figure and its panels side by side, drawn without a display; widths are relative."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    more = {"width_ratios": widths, "layout": "constrained", "squeeze": False}
    made, axes = plt.subplots(1, n_panels, figsize=size, **more)
    return made, list(axes[0])


def typeset(formula: str) -> str:
    """A formula such as Na(H2O)3+ ... OH2 with the small digits and signs of print."""
    text = re.sub(r"(?<=[A-Za-z)])\d+", lambda m: m[0].translate(_SMALL), formula)
    return text.replace("+", "⁺").replace("-", "⁻").replace("...", "···")


_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def heading(what: str, *details: str, columns: int = 72) -> str:
    """A title: what is shown, and below it the model, the data and the conditions.

    Args:
        what: is shown.
        details: model, data and conditions; empty ones are left out, others stay whole where
            they fit into a line.
        columns: letters in a line, at most.
    """
    lines: list[str] = []
    for detail in filter(None, details):
        pieces = textwrap.wrap(detail, columns - 1)
        if lines and len(f"{lines[-1]}, {pieces[0]}") < columns and len(pieces) == 1:
            lines[-1] += f", {pieces[0]}"
        else:
            lines[-1:] = [f"{line}," for line in lines[-1:]]
            lines += pieces
    return "\n".join([what, *lines])


def names(paths: Any) -> str:
    """Files as a title names them: without folders, several joined, at most three."""
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    shown = [Path(path).name for path in listed[:3]]
    more = [f"and {len(listed) - 3} more"] if len(listed) > 3 else []
    return " ".join([", ".join(shown), *more])


def save(made: Any, path: Path) -> str:
    """Write a figure as PNG and SVG and close it.

    Args:
        made: the figure.
        path: of the PNG; the SVG has the same name otherwise.

    Returns:
        What to tell the user: both names.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    # The same picture is the same file: no date, and no random names inside.
    with matplotlib.rc_context({"svg.hashsalt": "mace_polmp"}):
        for ending in FORMATS:
            more = {"metadata": {"Date": None}} if ending == "svg" else {}
            with replacing(path.with_suffix(f".{ending}")) as temporary:
                made.savefig(temporary, dpi=150, format=ending, **more)
    plt.close(made)
    return said(path)


def said(path: Path) -> str:
    """How messages name a picture: run_ir.png and .svg."""
    return f"{path} and .svg"


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with a header."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def draw_lines(
    path: Path,
    x: Array,
    lines: Mapping[str, Array],
    labels: tuple[str, str],
    title: str,
    limits: tuple[float, float] | None = None,
    sticks: Sticks | None = None,
    band: Band | None = None,
) -> None:
    """Lines over a common axis as PNG and SVG.

    Args:
        path: of the PNG.
        x: [n].
        lines: [n] each, by name.
        labels: of both axes.
        title: see heading.
        limits: of the horizontal axis.
        sticks: drawn on an axis at the right.
        band: error of the first line.
    """
    made, (axis,) = figure()
    for name, values in lines.items():
        axis.plot(x, values, lw=1.2, label=name)
    if band is not None:
        _add_band(axis, x, next(iter(lines.values())), band)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.set_title(title, fontsize=10)
    if limits is not None:
        axis.set_xlim(limits)
    axis.grid(True, alpha=0.25)
    if sticks is not None:
        _add_sticks(axis, sticks)
    if len(lines) > 1 or band is not None:
        axis.legend(frameon=False)
    save(made, path)


def _add_band(axis: Any, x: Array, line: Array, band: Band) -> None:
    """Draw a band about a line; what is wide at the start does not set the scale."""
    axis.fill_between(
        x, line - band.error, line + band.error, color="C0", alpha=0.2, lw=0, label=band.label
    )
    later = slice(len(x) // 10, None)
    low = float((line - band.error)[later].min())
    high = float((line + band.error)[later].max())
    margin = 0.1 * (high - low) or 1.0
    axis.set_ylim(max(low - margin, min(0.0, low)), high + margin)


def _add_sticks(axis: Any, sticks: Sticks) -> None:
    """Draw sticks on an axis at the right, with the places of the larger ones above them."""
    right = axis.twinx()
    right.vlines(sticks.position, 0.0, sticks.height, color="black", lw=1.2)
    right.set_ylabel(sticks.label)
    top = float(sticks.height.max()) if len(sticks.height) else 0.0
    right.set_ylim(0.0, 1.25 * top or 1.0)
    axis.set_ylim(0.0, 1.25 * max(float(line.get_ydata().max()) for line in axis.lines) or 1.0)
    span = float(np.ptp(axis.get_xlim()))
    for number in labelled(sticks.position, sticks.height, 0.022 * span):
        place = float(sticks.position[number])
        tops = [np.interp(place, *line.get_data()) / axis.get_ylim()[1] for line in axis.lines]
        above = max(float(sticks.height[number]) / right.get_ylim()[1], *tops)
        right.text(
            place,
            above + 0.015,
            f"{place:.0f}",
            transform=right.get_xaxis_transform(),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
        )


def labelled(position: Array, height: Array, apart: float) -> list[int]:
    """Which sticks get a label: the largest first, none close to one that has one already.

    Args:
        position: [n].
        height: [n].
        apart: labels at least.
    """
    chosen: list[int] = []
    for number in np.argsort(height)[::-1]:
        if len(chosen) == _LABELS or height[number] < 0.02 * height.max():
            break
        if all(abs(position[number] - position[other]) >= apart for other in chosen):
            chosen.append(int(number))
    return chosen


def draw_parity(
    path: Path, label: str, groups: Mapping[str, tuple[Array, Array]], title: str
) -> None:
    """Predictions over references, one colour for each group, as PNG and SVG."""
    made, (axis,) = figure(size=(5.0, 5.0))
    everything = np.concatenate([np.concatenate(pair) for pair in groups.values()])
    size, alpha = (4, 0.5) if len(everything) > 400 else (8, 0.8)
    for name, (reference, predicted) in groups.items():
        axis.plot(
            reference,
            predicted,
            ".",
            ms=size,
            alpha=alpha,
            label=name,
            rasterized=len(everything) > _MANY_POINTS,
        )
    low, high = float(everything.min()), float(everything.max())
    margin = 0.05 * (high - low) or 1.0
    ends = [low - margin, high + margin]
    axis.plot(ends, ends, color="black", lw=0.8)
    axis.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"reference {label}",
        ylabel=f"predicted {label}",
        aspect="equal",
    )
    axis.set_title(title, fontsize=9)
    if len(groups) > 1:
        axis.legend(frameon=False, markerscale=2)
    save(made, path)
