"""Fixtures for tests that run commands."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from tests import compiled_once, devices

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start
compiled_once.use()

MARKS = {"cuda": pytest.mark.cuda}  # the GPU's alone: -m cuda


@pytest.fixture(
    params=[pytest.param(name, marks=MARKS.get(name, ())) for name in devices.AVAILABLE]
)
def device(request):
    """The device that a test runs on: the CPU, and the GPU where there is one."""
    devices.use(request.param)
    yield torch.device(request.param)
    devices.use("cpu")


@pytest.fixture
def double():
    """Torch's default dtype is double precision, as upstream leaves it behind."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def clean_state():
    """Upstream's commands set torch's default dtype and add log handlers; put both back."""
    root = logging.getLogger()
    handlers, filters, level = list(root.handlers), list(root.filters), root.level
    dtype = torch.get_default_dtype()
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            handler.close()
            root.removeHandler(handler)
    root.filters, root.level = filters, level
    torch.set_default_dtype(dtype)
