"""`mace_polmp convert` and `mace_polmp info`."""

import pytest
import torch
from mace.modules import ScaleShiftMACE

from mace_polmp.cli.main import main
from mace_polmp.modules.io import load_model
from mace_polmp.modules.record import TrainingRecord
from tests.helpers import backbone_settings, evaluate, random_model, salty_water


def test_convert_and_info(tmp_path, capsys):
    model = random_model()
    torch.save(model, tmp_path / "a.model")
    main(["convert", str(tmp_path / "a.model"), str(tmp_path / "b.safetensors")])
    main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.model")])
    energies = [evaluate(m, salty_water())["energy"] for m in (model,)]
    energies.append(evaluate(load_model(tmp_path / "c.model"), salty_water())["energy"])
    assert torch.equal(*energies)
    capsys.readouterr()
    main(["info", str(tmp_path / "b.safetensors")])
    out = capsys.readouterr().out
    assert "runs code" not in out
    for words in ("MultipoleMACE", "H O Na Cl", "4 Å", "8x0e+8x1o | 8x0e", "multipole_lmax"):
        assert words in out, words
    torch.save(ScaleShiftMACE(**backbone_settings()), tmp_path / "plain.model")
    main(["info", str(tmp_path / "plain.model")])
    first, *rest = capsys.readouterr().out.splitlines()
    assert "a pickle; reading it runs code from the file" in first
    assert any("ScaleShiftMACE" in line for line in rest)


def test_what_a_model_remembers(tmp_path, capsys):
    model = random_model()
    model.trained_on = TrainingRecord("net_charge", ("open", "slab"))
    torch.save(model, tmp_path / "a.model")
    main(["convert", str(tmp_path / "a.model"), str(tmp_path / "b.safetensors")])
    assert load_model(tmp_path / "b.safetensors").trained_on == model.trained_on
    main(["info", str(tmp_path / "b.safetensors")])
    out = capsys.readouterr().out
    assert "open and slab" in out and "info['net_charge']" in out


def test_info_warns_before_it_reads(tmp_path, capsys):
    """Also of files that are no models: the warning comes first."""
    (tmp_path / "a.model").write_bytes(b"no model")
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "a.model")])
    out, err = capsys.readouterr()
    assert "reading it runs code" in out and "not a model file" in err


def test_refusals(tmp_path, capsys):
    torch.save(random_model(), tmp_path / "a.model")
    torch.save(ScaleShiftMACE(**backbone_settings()), tmp_path / "plain.model")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "linear.model")
    (tmp_path / "there.safetensors").touch()

    def refused(message, *command):
        with pytest.raises(SystemExit):
            main([str(tmp_path / c) if "." in c else c for c in command])
        assert message in capsys.readouterr().err

    refused("is there already; give --overwrite", "convert", "a.model", "there.safetensors")
    refused("not a MultipoleMACE", "convert", "plain.model", "new.safetensors")
    refused("the ending must be", "convert", "a.model", "new.pt")
    refused("holds a Linear, which is not a MACE model", "info", "linear.model")
    refused("no such file", "info", "none.model")
    assert not (tmp_path / "new.safetensors").exists()
