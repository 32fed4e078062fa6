"""Averages of energies per element beside formal charges, whose energy is there at once."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mace_polmp.modules import LongRangeOptions
from mace_polmp.training.averages import HeadEnergies
from tests.helpers import evaluate, make_graphs, random_model, rattled, rock_salt, salty_water

pytestmark = pytest.mark.usefixtures("device")

IONS = LongRangeOptions(
    charge_readout="bond", induced="none", formal_charges="Na:1,Cl:-1", kspace_spacing=3.0
)
TRUE = {1: -1.0, 8: -2.0, 11: -5.0, 17: -7.0}
ELEMENTS = list(TRUE)


def structures():
    """Crystals, solutions and ions, whose compositions tell the elements apart."""
    salt = [rattled(rock_salt(), seed=n, stdev=0.03) for n in range(2)]
    wet = salty_water()
    return [*salt, wet, wet[1:5], wet[2:5], wet[2:4], salty_water(True)]


def fitted(model, known=None, asked="average"):
    """Energies by element and what was said, from labels that are E0s and long-range energy."""
    frames = structures()
    energies = [
        sum(TRUE[int(z)] for z in atoms.numbers)
        + evaluate(model, atoms)["long_range_energy"].item()
        for atoms in frames
    ]
    train = [
        SimpleNamespace(
            atomic_numbers=atoms.numbers,
            properties={"energy": energy},
            weight=1.0,
            property_weights={"energy": 1.0},
        )
        for atoms, energy in zip(frames, energies, strict=True)
    ]
    heads = HeadEnergies()
    if known:
        heads.keep_isolated(train, known)

    def upstream(word, configs, table):
        counts = np.array([[(c.atomic_numbers == z).sum() for z in table.zs] for c in configs])
        values = np.array([c.properties["energy"] for c in configs])
        return dict(zip(table.zs, np.linalg.lstsq(counts, values, rcond=None)[0], strict=True))

    found = heads.of(upstream, asked, train, ELEMENTS)
    graphs = make_graphs(frames, model)
    for graph in graphs:
        graph.head = torch.tensor(0)
    config = SimpleNamespace(head_name="Default", collections=SimpleNamespace(train=train))
    given = np.array([[found[z] for z in ELEMENTS]])
    table = SimpleNamespace(zs=ELEMENTS)
    after = heads.beside_ions(model.cpu(), given, graphs, ["Default"], table, [config])
    return given[0], np.asarray(after)[0]


def test_averages_leave_out_the_energy_that_the_model_has(caplog):
    """Labels are atomic energies and the energy of the ions: the first are found again."""
    model = random_model(IONS)
    with caplog.at_level(logging.INFO):
        before, after = fitted(model)
    assert np.abs(before - list(TRUE.values())).max() > 1.0  # ions bind by electronvolts
    np.testing.assert_allclose(after, list(TRUE.values()), atol=1e-6)
    assert "averages of energies without the long-range energy" in caplog.text
    own = model.atomic_energies_fn.atomic_energies.view(-1)
    np.testing.assert_allclose(own.cpu(), after, atol=1e-12)


def test_energies_of_isolated_atoms_stay():
    _, after = fitted(random_model(IONS), known={1: -1.0, 11: -5.0})
    np.testing.assert_allclose(after, list(TRUE.values()), atol=1e-6)
    _, after = fitted(random_model(IONS), known={11: 3.0})
    assert after[2] == 3.0


@pytest.mark.parametrize(
    ("formal", "asked"), [("", "average"), ("Na:1,Cl:-1", {1: 1.0, 8: 2.0, 11: 3.0, 17: 4.0})]
)
def test_others_stay_what_they_are(formal, asked):
    options = LongRangeOptions(charge_readout="bond", induced="none", formal_charges=formal)
    before, after = fitted(random_model(options), asked=asked)
    np.testing.assert_array_equal(before, after)
