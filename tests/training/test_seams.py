"""The seams: every replaced name is checked, and put back."""

import importlib

import pytest
from mace.cli import run_train as upstream

from mace_polmp.training import seams


def test_a_missing_name_is_reported_with_the_tested_versions(monkeypatch):
    monkeypatch.delattr(upstream, "get_params_options")
    with pytest.raises(ImportError, match=r">=0\.3\.16,<0\.4.*run_train\.get_params_options"):
        importlib.reload(seams)
    monkeypatch.undo()
    importlib.reload(seams)


def test_replaced_functions_come_back_after_an_error():
    original = upstream.configure_model
    with pytest.raises(RuntimeError), seams._replaced(upstream, configure_model=print):
        assert upstream.configure_model is print
        raise RuntimeError
    assert upstream.configure_model is original
