"""Safe model files: the model comes back exactly, and nothing else is loaded."""

import copy
import json
import os

import pytest
import safetensors.torch
import torch

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions, MultipoleMACE, safe_files
from mace_polmp.modules.io import load_any, load_model, write_model
from mace_polmp.modules.model import FORMAT_VERSION
from tests.helpers import evaluate, random_model, rock_salt, salty_water

BACKBONES = {
    "default": {},
    "one layer": dict(num_interactions=1, hidden_irreps="8x0e"),
    "density": dict(interaction="RealAgnosticDensityResidualInteractionBlock"),
    "attention": dict(interaction="RealAgnosticAttResidualInteractionBlock"),
    "non-linear": dict(interaction="RealAgnosticResidualNonLinearInteractionBlock"),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("options", [LongRangeOptions(), LongRangeOptions(multipole_lmax=0)])
def test_a_model_comes_back_as_it_was(tmp_path, name, options):
    model = random_model(options, **BACKBONES[name])
    safe_files.save(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.long_range_options == options
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    for atoms in (salty_water(), rock_salt("triclinic")):
        before, after = evaluate(model, atoms), evaluate(again, atoms)
        for key in ("energy", "forces", "dipole"):
            # TorchScript may order sums otherwise.
            torch.testing.assert_close(before[key], after[key], rtol=0, atol=1e-13)


def test_single_precision_and_the_way_back(tmp_path, device):
    model = random_model().float()
    write_model(model, tmp_path / "m.safetensors")
    again = load_any(tmp_path / "m.safetensors", device)
    assert isinstance(again, MultipoleMACE)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    write_model(again, tmp_path / "m.model")
    pickled = load_model(tmp_path / "m.model", device)
    for name, tensor in model.state_dict().items():
        assert torch.equal(pickled.state_dict()[name], tensor), name
    with pytest.raises(InputError, match="the ending must be .model or .safetensors"):
        write_model(model, tmp_path / "m.pt")


def rewrite(source, target, change=None, drop=None, checksum=False, tensors=None, **metadata):
    """The same file with other metadata or tensors, by default without its checksum."""
    with safetensors.safe_open(source, "pt") as file:
        header = dict(file.metadata())
    if not checksum:
        del header["sha256"]
    state = safetensors.torch.load_file(source)
    if drop:
        state.pop(drop)
    for name, value in (tensors or {}).items():
        state[name] = torch.full_like(state[name], value)
    if change:
        config = json.loads(header["config"])
        change(config)
        header["config"] = json.dumps(config)
    safetensors.torch.save_file(state, target, {**header, **metadata})


def test_older_formats_are_upgraded(tmp_path, monkeypatch):
    """A file of version 0, which called an option something else, is read through its upgrades."""
    model = random_model(LongRangeOptions(charge_readout="atomic"))
    safe_files.save(model, tmp_path / "new.safetensors")

    def older(config):
        config["long_range"]["sigma"] = config["long_range"].pop("smearing")
        del config["long_range"]["charge_readout"]  # version 1 had none

    def upgrade(config, state):
        config["long_range"]["smearing"] = config["long_range"].pop("sigma")
        return config, state

    rewrite(tmp_path / "new.safetensors", tmp_path / "old.safetensors", older, format_version="0")
    monkeypatch.setitem(safe_files.UPGRADES, 0, upgrade)
    again = load_model(tmp_path / "old.safetensors")
    assert torch.equal(
        evaluate(again, salty_water())["energy"], evaluate(model, salty_water())["energy"]
    )


def test_pickles_of_the_first_format_still_load(tmp_path):
    model = random_model(LongRangeOptions(charge_readout="atomic"))
    energy = evaluate(model, salty_water())["energy"]
    options = copy.copy(model.long_range_options)
    vars(options).pop("charge_readout")
    model.long_range_options = model.multipole_readouts.options = options
    model.format_version = 1
    del model.multipole_readouts.transfer, model.multipole_readouts.orientation
    torch.save(model, tmp_path / "old.model")
    again = load_model(tmp_path / "old.model")
    assert torch.equal(evaluate(again, salty_water())["energy"], energy)
    assert again.long_range_options.charge_readout == "atomic"
    safe_files.save(again, tmp_path / "old.safetensors")


def test_bad_files_are_refused(tmp_path):
    good = tmp_path / "good.safetensors"
    safe_files.save(random_model(), good)
    bad = tmp_path / "bad.safetensors"

    def refused(message):
        with pytest.raises(InputError, match=message):
            load_model(bad)

    refused("bad.safetensors: no such file")
    bad.write_bytes(good.read_bytes()[:-1000])
    refused("bad.safetensors: not a safetensors file, or a truncated one")
    bad.write_text("no model")
    refused("not a safetensors file, or a truncated one")
    safetensors.torch.save_file({"x": torch.zeros(1)}, bad)
    refused("is not a model of mace_polmp")
    rewrite(good, bad, format_version="99")
    refused(f"format version 99, this mace_polmp reads up to {FORMAT_VERSION}; install a newer")
    rewrite(good, bad, config="{")
    refused("the header lacks or garbles")
    rewrite(good, bad, drop="multipole_readouts.element_bias")
    refused("it lacks multipole_readouts.element_bias")
    rewrite(good, bad, lambda config: config["long_range"].update(multipole_lmax=0))
    refused("tensors and configuration do not fit")
    rewrite(good, bad, lambda config: config["long_range"].update(sigma=1.0))
    refused("the configuration has an unknown entry")
    rewrite(good, bad, lambda config: config["backbone"].update(interaction_cls="os.system"))
    refused("unknown entry or lacks 'os.system'")
    rewrite(good, bad, lambda config: config["backbone"].update(r_max=9.0))
    refused("r_max is 9.0 in the configuration and 4.0 in the tensors")
    rewrite(good, bad, tensors={"multipole_readouts.element_bias": float("nan")})
    refused("weights of the model .multipole_readouts.element_bias. are NaN or infinite")


@pytest.mark.parametrize("what", ["tensor", "configuration"])
def test_a_file_that_was_changed_is_refused(tmp_path, what):
    """The checksum is that of tensors and configuration; files of old versions have none."""
    safe_files.save(random_model(), tmp_path / "good.safetensors")
    change = {
        "tensor": dict(tensors={"multipole_readouts.element_bias": 0.5}),
        "configuration": dict(change=lambda c: c["long_range"].update(kspace_spacing=1.0)),
    }[what]
    bad = tmp_path / "bad.safetensors"
    rewrite(tmp_path / "good.safetensors", bad, checksum=True, **change)
    with pytest.raises(InputError, match="its content was changed after it was written"):
        load_model(bad)
    rewrite(tmp_path / "good.safetensors", bad, **change)
    load_model(bad)


@pytest.mark.parametrize("name", ["m.safetensors", "M.SAFETENSORS", "m.model"])
def test_what_a_file_is_its_content_says(tmp_path, name):
    """A safe file loads under any name; a pickle under the name of a safe one is not unpickled."""
    model = random_model()
    safe_files.save(model, tmp_path / "good.safetensors")
    (tmp_path / name).write_bytes((tmp_path / "good.safetensors").read_bytes())
    assert torch.equal(
        evaluate(load_model(tmp_path / name), salty_water())["energy"],
        evaluate(model, salty_water())["energy"],
    )
    ran = tmp_path / "ran"
    torch.save(_Trap(ran), tmp_path / name)
    with pytest.raises(InputError):
        load_model(tmp_path / name)
    assert ran.exists() == (name == "m.model")  # which is what a pickle is


class _Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        safe_files.save(random_model(), tmp_path / "m.safetensors")
        write_model(random_model(), tmp_path / "m.model")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o640
