"""How close frames must be, and where atoms go across the boundaries."""

import numpy as np
import pytest

from mace_polmp.analysis.sampling import check_sampling, nyquist, unwrapped, wrapped_between
from mace_polmp.errors import InputError

HYDROGEN, DEUTERIUM, CARBON, IODINE = 1.008, 2.014, 12.011, 126.9


def test_the_nyquist_limit():
    """A frame every 5 fs tells periods of 10 fs: 3336 cm⁻¹."""
    assert nyquist(5.0) == pytest.approx(1.0 / (10.0 * 2.99792458e-5))


@pytest.mark.parametrize(
    ("mass", "enough", "too_far"),
    [(HYDROGEN, 4.0, 4.3), (DEUTERIUM, 5.5, 5.7), (CARBON, 6.6, 6.8), (IODINE, 11.0, 11.5)],
)
def test_vibrations_beyond_the_limit_are_refused(mass, enough, too_far):
    masses = np.array([mass, IODINE])
    check_sampling(masses, enough, "ir")
    with pytest.raises(InputError, match=f"frames are {too_far:g} fs apart, and ir needs at most"):
        check_sampling(masses, too_far, "ir")


def test_a_current_wants_more_of_heavy_atoms():
    with pytest.raises(InputError, match="dielectric needs at most 6.7 fs"):
        check_sampling(np.array([IODINE]), 9.0, "dielectric", least=2500.0)


def test_atoms_go_on_across_the_boundaries():
    """Wrapped along x and y and free along z, whatever the way."""
    rng = np.random.default_rng(0)
    way = np.cumsum(rng.normal(scale=0.05, size=(200, 4, 3)), axis=0)
    pbc = np.array([True, True, False])
    wrapped = np.where(pbc, way % 1.0, way)
    jumps = wrapped_between(wrapped, pbc)
    assert 0 < jumps.sum() < 199 and not wrapped_between(way, pbc).any()
    found = unwrapped(wrapped, pbc)
    np.testing.assert_allclose(found - found[0], way - way[0], atol=1e-12)
    with pytest.raises(InputError, match="atom 0 moves by 0.45 of a lattice vector between frames"):
        unwrapped(np.array([[[0.0, 0, 0]], [[0.45, 0, 0]]]), pbc)
