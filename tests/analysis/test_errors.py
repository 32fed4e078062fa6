"""Error measures of known errors."""

import numpy as np
import pytest

from mace_polmp.analysis.errors import Comparison, ErrorMeasures


def test_measures():
    reference = np.array([0.0, 1.0, 2.0, 3.0])
    measures = ErrorMeasures.of(reference, reference + [1, -1, 1, -1])
    assert (measures.count, measures.mae, measures.rmse) == (4, 1.0, 1.0)
    assert measures.r2 == pytest.approx(1 - 4 / 5)
    assert np.isnan(ErrorMeasures.of(np.ones(3), np.zeros(3)).r2)


def test_values_by_element_and_per_atom():
    entry = Comparison(
        [np.array([[1.0], [2.0], [3.0]]), np.array([[4.0]])],
        [np.array([[1.5], [2.5], [3.5]]), np.array([[4.5]])],
        [np.array([8, 1, 1]), np.array([8])],
    )
    np.testing.assert_array_equal(entry.of_element(8)[0], [1, 4])
    np.testing.assert_array_equal(entry.of_element(1)[1], [2.5, 3.5])
    energies = Comparison([np.array(6.0), np.array(1.0)], [np.array(3.0), np.array(2.0)])
    energies.numbers = entry.numbers
    np.testing.assert_array_equal(energies.per_atom()[0], [2.0, 1.0])
    np.testing.assert_array_equal(energies.per_atom()[1], [1.0, 2.0])
