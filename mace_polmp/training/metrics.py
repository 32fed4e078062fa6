"""Errors of electrical labels during and after a training."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from mace.tools.train import MACELoss

from mace_polmp.analysis.errors import ErrorMeasures
from mace_polmp.analysis.tables import r_squared, significant, text_table
from mace_polmp.branches import are_far, said_of
from mace_polmp.quantities import LABELS
from mace_polmp.training.loss import ElectricalLoss, exact_energies, label_pair, lattices_of
from mace_polmp.training.messages import offset_of, offset_said
from mace_polmp.training.options import ELECTRICAL_LABELS

UNITS = {name: LABELS[name].unit for name in ELECTRICAL_LABELS}
FAR = "far_polarization"
"""Of the metrics: number of structures whose polarization may be on a wrong branch."""

# Lists of upstream's that hold a value for every structure or atom, by the label that they are of.
_UNFILTERED = {
    "energy": ("delta_es_per_atom",),
    "virials": ("delta_virials_per_atom",),
    "forces": ("fs",),
}


class ElectricalMetrics(MACELoss):
    """Upstream's errors of energies, forces and stress, and those of the labels in the loss."""

    def __init__(self, loss_fn: torch.nn.Module) -> None:
        super().__init__(loss_fn)
        self.labels = list(loss_fn.weights) if isinstance(loss_fn, ElectricalLoss) else []
        for name in self.labels:
            self.add_state(f"reference_{name}", default=[], dist_reduce_fx="cat")
            self.add_state(f"predicted_{name}", default=[], dist_reduce_fx="cat")
        self.add_state(FAR, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, batch: Any, output: Any) -> None:
        exact_energies(batch)
        super().update(batch, output)
        self._leave_out_labels_that_do_not_count(batch)
        for name in self.labels:
            reference, predicted, weight = label_pair(batch, output, name)
            counted = batch.weight * weight > 0
            if LABELS[name].per_atom:
                counted = counted[batch.batch]
            getattr(self, f"reference_{name}").append(reference[counted].flatten())
            getattr(self, f"predicted_{name}").append(predicted[counted].detach().flatten())
            if name == "polarization":
                errors = (predicted - reference)[counted].detach().cpu().double().numpy()
                far = are_far(errors, lattices_of(batch)[counted.cpu().numpy()])
                setattr(self, FAR, getattr(self, FAR) + float(far.sum()))

    def _leave_out_labels_that_do_not_count(self, batch: Any) -> None:
        """Upstream counts missing energies per atom as 0 eV, virials and forces likewise."""
        for name, lists in _UNFILTERED.items():
            counted = batch.weight * batch[f"{name}_weight"].view(-1) > 0
            if name == "forces":
                counted = counted[batch.batch]
            for entry in lists:
                values = getattr(self, entry)
                if values and values[-1].shape[:1] == counted.shape:
                    values[-1] = values[-1][counted]

    def compute(self) -> tuple[float, dict[str, Any]]:
        loss, out = super().compute()
        if "rmse_e_per_atom" in out:
            out.update(offset_of(self.convert(self.delta_es_per_atom)))
        for name in self.labels:
            reference, predicted = (
                self.convert(getattr(self, f"{side}_{name}")) for side in ("reference", "predicted")
            )
            if len(reference) > 0:
                measures = ErrorMeasures.of(np.asarray(reference), np.asarray(predicted))
                for measure in ("mae", "rmse", "r2", "count"):
                    out[f"{measure}_{name}"] = getattr(measures, measure)
        if "polarization" in self.labels:
            out[FAR] = int(getattr(self, FAR))
        return loss, out


def warn_of_branches(metrics: dict[str, Any], where: str) -> None:
    """Say where the polarization may be compared on wrong branches."""
    said = said_of(metrics.get(FAR, 0), metrics.get("count_polarization", 0) // 3)
    if said is not None:
        logging.warning(f"{where}: {said}")


def line_of(metrics: dict[str, Any]) -> str:
    """RMSE of each label and the offset of energies in one line, empty where there is none."""
    offset = offset_said(metrics)
    parts = [f"energies: {offset}"] if offset else []
    parts += [
        f"RMSE_{name}={significant(metrics[f'rmse_{name}']):>8s} {unit}"
        for name, unit in UNITS.items()
        if is_compared(metrics, name)
    ]
    return ", ".join(parts)


def is_compared(metrics: dict[str, Any], name: str) -> bool:
    """Whether a label is in the loss: upstream has errors of some that are not, without a count."""
    return f"count_{name}" in metrics


def label_table(metrics: dict[str, dict[str, Any]]) -> str | None:
    """Errors of the labels for each set of data, None where there are none.

    Args:
        metrics: of ElectricalMetrics, by name of the set.
    """
    rows = []
    for where, values in metrics.items():
        for name, unit in UNITS.items():
            if not is_compared(values, name):
                continue
            errors = [significant(values[f"{measure}_{name}"]) for measure in ("mae", "rmse")]
            r2 = r_squared(values[f"r2_{name}"])
            rows.append([where, name, unit, values[f"count_{name}"], *errors, r2])
    columns = ["config_type", "label", "unit", "values", "MAE", "RMSE", "R²"]
    return text_table(columns, rows) if rows else None
