"""The names under which model files of earlier versions know parts of mace_polmp.head."""

from mace_polmp.head.convolutions import ChargeTransfer, Edges, EquivariantLift

__all__ = ["ChargeTransfer", "Edges", "EquivariantLift"]
