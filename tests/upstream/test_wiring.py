"""The wiring to mace-torch: every replaced name is checked, and put back."""

import importlib

import numpy as np
import pytest
from mace.cli import run_train as upstream

from mace_polmp.upstream import training
from mace_polmp.upstream.data import own_graphs
from mace_polmp.upstream.names import replaced


def test_a_missing_name_is_reported_with_the_tested_versions(monkeypatch):
    monkeypatch.delattr(upstream, "get_params_options")
    with pytest.raises(ImportError, match=r">=0\.3\.16,<0\.4.*run_train\.get_params_options"):
        importlib.reload(training)
    monkeypatch.undo()
    importlib.reload(training)


def test_another_signature_is_reported(monkeypatch):
    original = upstream.get_params_options
    monkeypatch.setattr(upstream, "get_params_options", lambda args, model, more=0: None)
    importlib.reload(training)  # a new parameter with a default
    for other in (lambda args, net: None, lambda args, model, more: None, lambda args: None):
        monkeypatch.setattr(upstream, "get_params_options", other)
        with pytest.raises(
            ImportError, match=r"run_train\.get_params_options.*not \(args, model\)"
        ):
            importlib.reload(training)
    monkeypatch.setattr(upstream, "get_params_options", original)
    importlib.reload(training)


def test_replaced_functions_come_back_after_an_error():
    original = upstream.configure_model
    with pytest.raises(RuntimeError), replaced(upstream, configure_model=print):
        assert upstream.configure_model is print
        raise RuntimeError
    assert upstream.configure_model is original


def test_slabs_keep_their_cells_during_a_run():
    """Upstream's cell of a slab is hundreds of Å high; those of other structures it keeps."""
    from mace import data, tools
    from mace.data import atomic_data

    from tests.helpers import rock_salt, salty_water, wet_slab

    def cell(atoms):
        table = tools.AtomicNumberTable([1, 8, 11, 17])
        config = data.config_from_atoms(atoms)
        return data.AtomicData.from_config(config, z_table=table, cutoff=4.0).cell.numpy()

    original = atomic_data.get_neighborhood
    assert cell(wet_slab())[2, 2] > 50
    outside = [cell(atoms) for atoms in (rock_salt(), salty_water())]
    with own_graphs():
        np.testing.assert_allclose(cell(wet_slab()), wet_slab().cell.array, rtol=1e-6)
        for before, atoms in zip(outside, (rock_salt(), salty_water()), strict=True):
            np.testing.assert_array_equal(cell(atoms), before)
    assert atomic_data.get_neighborhood is original
