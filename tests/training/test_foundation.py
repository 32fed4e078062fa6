"""Foundation models that are files of this package."""

from argparse import Namespace

import torch

from mace_polmp import load_model
from mace_polmp.training.foundation import check_foundation_model, readable_foundation


def test_upstream_can_read_the_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = Namespace(foundation_model="demo", r_max=None)
    model = check_foundation_model(args)
    with readable_foundation(args, model):
        read = torch.load(args.foundation_model, weights_only=False)  # as upstream does
    assert args.foundation_model == "demo"
    theirs = read.state_dict()
    for name, weights in load_model("demo").state_dict().items():
        assert torch.equal(weights, theirs[name].to(weights.dtype)), name
