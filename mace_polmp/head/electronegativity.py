"""Pauling electronegativities, the guess from which latent charges start with a physical sign."""

from __future__ import annotations

# From hydrogen on; 0 where the scale has no value. CRC Handbook of Chemistry and Physics.
_ROWS = (
    (2.20, 0.0),
    (0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 0.0),
    (0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, 0.0),
    (0.82, 1.00, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65),
    (1.81, 2.01, 2.18, 2.55, 2.96, 0.0),
    (0.82, 0.95, 1.22, 1.33, 1.60, 2.16, 2.10, 2.20, 2.28, 2.20, 1.93, 1.69),
    (1.78, 1.96, 2.05, 2.10, 2.66, 2.60),
    (0.79, 0.89, 1.10, 1.12, 1.13, 1.14, 1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25),
    (1.10, 1.27, 1.30, 1.50, 1.70, 1.90, 2.20, 2.20, 2.20, 2.40, 1.90),
    (1.80, 1.80, 1.90, 2.00, 2.20, 0.0),
    (0.70, 0.90, 1.10, 1.30, 1.50, 1.70, 1.30, 1.30, 1.30, 1.30),
)
PAULING: tuple[float, ...] = tuple(x for row in _ROWS for x in row)


def electropositivity(atomic_numbers: list[int]) -> list[float]:
    """Mean electronegativity of the elements given minus each element's own; 0 where unknown."""
    values = [PAULING[z - 1] if 0 < z <= len(PAULING) else 0.0 for z in atomic_numbers]
    known = [x for x in values if x > 0]
    mean = sum(known) / len(known) if known else 0.0
    return [mean - x if x > 0 else 0.0 for x in values]
