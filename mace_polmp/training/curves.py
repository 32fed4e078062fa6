"""Learning curves of electrical labels, beside those that upstream draws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.training.metrics import UNITS, is_compared
from mace_polmp.unit_names import with_unit


def read_records(path: Path) -> list[dict[str, Any]]:
    """Errors on validation data by epoch, of upstream's results file; what is cut off is left out.

    Args:
        path: of the file, one JSON object in a line.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("mode") == "eval" and record.get("epoch") is not None:
            found[int(record["epoch"]), str(record.get("head", ""))] = record
    return [found[key] for key in sorted(found)]


def draw_label_curves(path: str | Path) -> None:
    """RMSE of each label on the validation data against the epoch, as PNG and SVG.

    Args:
        path: of upstream's results file; the picture has its name and _labels.png or .svg.
    """
    results = Path(path)
    records = read_records(results)
    names = [n for n in UNITS if any(is_compared(r, n) for r in records)]
    if not names or len({r["epoch"] for r in records}) < 2:
        return
    heads = sorted({str(r.get("head", "")) for r in records})
    made, axes = plots.figure(len(names), (0.6 + 3.6 * len(names), 3.8))
    made.suptitle(plots.heading("Errors on the validation data", results.stem), fontsize=10)
    for axis, name in zip(axes, names, strict=True):
        for head in heads:
            values = [
                (r["epoch"], _number(r.get(f"rmse_{name}")))
                for r in records
                if str(r.get("head", "")) == head
            ]
            points = np.array([(e, v) for e, v in values if v is not None], dtype=float)
            if len(points):
                axis.plot(points[:, 0], points[:, 1], lw=1.2, label=head or "validation")
        words = f"RMSE of {name.replace('_', ' ').replace('born', 'Born')}"
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="epoch", ylabel=with_unit(words, UNITS[name]))
        axis.set_yscale("log")
        axis.grid(True, alpha=0.25)
        if len(heads) > 1:
            axis.legend(frameon=False)
    plots.save(made, results.with_name(f"{results.stem}_labels.png"))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(value) if is_number else None
