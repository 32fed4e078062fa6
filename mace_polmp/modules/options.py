"""The names under which model files of earlier versions know parts of mace_polmp.head."""

from mace_polmp.head.options import LEARN, LongRangeOptions, choose, option

__all__ = ["LEARN", "LongRangeOptions", "choose", "option"]
