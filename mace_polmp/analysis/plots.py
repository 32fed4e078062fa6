"""Plots as PNG files, and tables as CSV; each is written to a temporary file first."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.files import replacing


def figure(n_panels: int = 1, size: tuple[float, float] = (7.0, 4.0)) -> tuple[Any, list[Any]]:
    """A figure and its panels side by side, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, n_panels, figsize=size, layout="constrained", squeeze=False)
    return made, list(axes[0])


def typeset(formula: str) -> str:
    """A formula such as Na(H2O)3+ ... OH2 with the small digits and signs of print."""
    text = re.sub(r"(?<=[A-Za-z)])(\d)", lambda m: "₀₁₂₃₄₅₆₇₈₉"[int(m[1])], formula)
    return text.replace("+", "⁺").replace("-", "⁻").replace("...", "···")


def save(made: Any, path: Path) -> None:
    """Write a figure as PNG and close it."""
    import matplotlib.pyplot as plt

    with replacing(path) as temporary:
        made.savefig(temporary, dpi=150, format="png")
    plt.close(made)


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
    limits: tuple[float, float] | None = None,
    sticks: tuple[Array, Array] | None = None,
) -> None:
    """Lines over a common axis, and vertical sticks at (position, height), to a PNG file."""
    made, (axis,) = figure()
    for name, values in lines.items():
        axis.plot(x, values, lw=1.2, label=name)
    if sticks is not None:
        axis.vlines(sticks[0], 0.0, sticks[1], color="black", lw=1.0)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    if limits is not None:
        axis.set_xlim(limits)
    axis.grid(True, alpha=0.25)
    if len(lines) > 1:
        axis.legend(frameon=False)
    save(made, path)


def draw_parity(
    path: Path, label: str, groups: Mapping[str, tuple[Array, Array]], title: str
) -> None:
    """Predictions over references, one colour for each group, to a PNG file."""
    made, (axis,) = figure(size=(5.0, 5.0))
    everything = np.concatenate([np.concatenate(pair) for pair in groups.values()])
    size, alpha = (4, 0.5) if len(everything) > 400 else (8, 0.8)
    for name, (reference, predicted) in groups.items():
        axis.plot(reference, predicted, ".", ms=size, alpha=alpha, label=name)
    low, high = float(everything.min()), float(everything.max())
    margin = 0.05 * (high - low) or 1.0
    ends = [low - margin, high + margin]
    axis.plot(ends, ends, color="black", lw=0.8)
    axis.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"reference {label}",
        ylabel=f"predicted {label}",
        title=title,
        aspect="equal",
    )
    if len(groups) > 1:
        axis.legend(frameon=False, markerscale=2)
    save(made, path)
