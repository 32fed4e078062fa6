"""The names under which model files of earlier versions know parts of mace_polmp.head."""

from mace_polmp.head.readouts import MultipoleReadouts

__all__ = ["MultipoleReadouts"]
