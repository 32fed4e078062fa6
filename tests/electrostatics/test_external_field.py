"""Where a charge has an energy in a uniform field: the rule that the programs around ask."""

import pytest
import torch

from mace_polmp.electrostatics.external_field import is_along_periodic

# The plane of the first two vectors is not that of x and y; its normal is (−1, 0, 2)/√5.
CELL = torch.tensor([[4.0, 0.0, 2.0], [1.0, 5.0, 0.5], [0.0, 0.0, 9.0]])
NORMAL = (-1.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("pbc", "field", "expected"),
    [
        ((False, False, False), (1.0, 2.0, 3.0), False),
        ((True, True, True), (0.0, 0.0, 1e-3), True),
        ((True, True, True), (0.0, 0.0, 0.0), False),
        ((True, True, False), NORMAL, False),
        ((True, True, False), (0.0, 0.0, 1.0), True),
        ((True, True, False), (-1.0 + 1e-5, 0.0, 2.0), True),
        ((True, True, False), (-1.0 + 1e-9, 0.0, 2.0), False),  # rounding
        ((False, True, True), (1.0, 0.0, 0.0), False),  # along its normal
    ],
)
def test_a_field_has_a_part_along_periodic_directions(pbc, field, expected):
    cell = CELL
    if pbc == (False, True, True):
        cell = torch.tensor([[9.0, 1.0, 2.0], [0.0, 5.0, 0.5], [0.0, 0.0, 4.0]])
    for size in (1.0, 1e-4):  # it does not depend on units
        assert is_along_periodic(size * torch.tensor(field), cell, pbc) == expected
