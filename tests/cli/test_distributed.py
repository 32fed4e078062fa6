"""A training on two processes makes the model that one process makes."""

import numpy as np
import pytest
import torch

from mace_polmp.cli.run_train import main
from mace_polmp.modules.io import load_any
from tests.cli.runs import flags, periodic_frames, run_module, write_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("clean_state"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo"),
]

TINY = {"num_channels": 4, "max_L": 0, "num_interactions": 1, "max_ell": 1, "max_num_epochs": 3}


def with_born_charges(frames):
    for atoms in frames:
        signs = np.where(atoms.symbols == "Na", 1.0, -1.0)
        charges = signs[:, None, None] * np.eye(3)
        atoms.arrays["REF_born_charges"] = charges.reshape(-1, 9)
    return frames


@pytest.mark.parametrize("labels", [False, True])
def test_two_processes_make_the_model_of_one(tmp_path, labels):
    """All structures are one batch; two processes have half of it each and the mean gradient.

    With a permittivity to learn, which without Born charges in the loss has no gradient.
    """
    train_file = write_data(tmp_path, with_born_charges(periodic_frames(8)))
    valid_file = write_data(tmp_path, with_born_charges(periodic_frames(2)), "valid.xyz")
    changes = dict(
        model="MultipoleMACE",
        train_file=train_file,
        valid_file=valid_file,
        valid_fraction=None,
        epsilon_infinity="learn",
        ema=True,
        ema_decay=0.5,
        scaling="no_scaling",  # upstream's is that of the first process's part of the data
        **TINY,
    )
    if labels:
        changes["born_charges_weight"] = 10.0
        changes["born_charges_directions"] = 3  # random ones would be others
    main(flags(tmp_path / "one", batch_size=8, **changes))
    several = flags(
        tmp_path / "two",
        batch_size=4,
        distributed=True,
        launcher="torchrun",
        device="cpu",
        **changes,
    )
    launcher = ["--standalone", "--nproc_per_node=2", "-m", "mace_polmp.cli.run_train"]
    result = run_module("torch.distributed.run", [*launcher, *several], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (load_any(tmp_path / name / "m.model").state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-6, atol=1e-8, msg=name)
