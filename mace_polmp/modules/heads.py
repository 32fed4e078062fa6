"""Which of a model's heads is meant."""

from __future__ import annotations

from collections.abc import Sequence

from mace_polmp.errors import InputError


def check_head(head: str | None, heads: Sequence[str], name: str = "--head") -> None:
    """Refuse a head that a model does not have, or several without a choice.

    Args:
        head: as it was asked for.
        heads: of the model.
        name: of the option.

    Raises:
        InputError: names the heads.
    """
    known = ", ".join(heads)
    if isinstance(head, str) and head not in heads:
        raise InputError(f"{name} must be one of {known}, got {head!r}")
    if head is None and len(heads) > 1 and "default" not in [h.lower() for h in heads]:
        raise InputError(
            f"the model has several heads, {known}; say which with head (--head in commands)"
        )


def head_index(head: str | None, heads: Sequence[str], name: str = "head") -> int:
    """The number of a head: that of the name, else the default one.

    Args:
        head: as it was asked for.
        heads: of the model.
        name: of the option.

    Raises:
        InputError: as check_head.
    """
    check_head(head, heads, name)
    if head is not None:
        return list(heads).index(head)
    lower = [h.lower() for h in heads]
    return lower.index("default") if "default" in lower else 0
