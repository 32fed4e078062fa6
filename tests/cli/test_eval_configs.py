"""mace_eval_configs: upstream's output, and the multipoles."""

import copy
import sys

import numpy as np
import pytest
import torch
from ase.io import read, write
from mace.modules import ScaleShiftMACE

from mace_polmp.cli.eval_configs import main
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.modules.io import write_model
from tests.cli.runs import run_module, write_data
from tests.helpers import (
    backbone_settings,
    evaluate,
    make_batch,
    random_model,
    rock_salt,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("clean_state")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mace_eval_configs", *map(str, arguments)])
    main()


@pytest.fixture
def files(tmp_path):
    torch.save(random_model(), tmp_path / "m.model")
    frames = [salty_water(), rock_salt("triclinic"), wet_slab()]
    return (
        tmp_path / "m.model",
        write_data(tmp_path, frames, "in.xyz"),
        tmp_path / "out.xyz",
        frames,
    )


def test_multipoles_are_written(files, monkeypatch):
    model_file, data, output, frames = files
    run(
        monkeypatch, f"--model={model_file}", f"--configs={data}", f"--output={output}",
        "--batch_size=2", "--compute_stress", "--return_node_energies",
    )  # fmt: skip
    written = read(output, ":")
    assert len(written) == 3
    for atoms, original in zip(written, frames, strict=True):
        out = evaluate(random_model(), original, compute_stress=True)
        for key in ("energy", "dipole", "long_range_energy", "polarizability", "stress"):
            expected = out[key][0].detach().numpy()
            np.testing.assert_allclose(
                np.reshape(atoms.info[f"MACE_{key}"], expected.shape), expected, atol=1e-6
            )
        for key in ("forces", "charges", "atomic_dipoles", "atomic_quadrupoles"):
            expected = out[key].detach().numpy()
            got = atoms.arrays[f"MACE_{key}"].reshape(expected.shape)
            np.testing.assert_allclose(got, expected, atol=1e-7)
    assert sorted(p.name for p in output.parent.iterdir()) == ["in.xyz", "m.model", "out.xyz"]


def test_dipoles_of_bond_charges_far_from_the_origin(tmp_path, monkeypatch):
    """Single precision evaluates structures near it; 1e-3 e Å is the rounding of 4000 Å."""
    options = LongRangeOptions(charge_readout="bond", induced="none", formal_charges="Na:1,Cl:-1")
    model = random_model(options)
    model.multipole_readouts.transfer.rescale(20.0)
    torch.save(model, tmp_path / "m.model")
    atoms = rock_salt()
    atoms.positions += [4000.0, 0.0, 0.0]
    data = write_data(tmp_path, [atoms], "in.xyz")
    run(
        monkeypatch, f"--model={tmp_path}/m.model", f"--configs={data}",
        f"--output={tmp_path}/out.xyz", "--default_dtype=float32",
    )  # fmt: skip
    expected = evaluate(model, read(data))["dipole"][0].detach().numpy()
    np.testing.assert_allclose(read(tmp_path / "out.xyz").info["MACE_dipole"], expected, atol=1e-3)


def test_born_charges_are_written_when_asked_for(files, monkeypatch):
    """Of open and periodic structures in one file."""
    model_file, _, output, frames = files
    data = write_data(output.parent, frames[:2], "two.xyz")
    run(
        monkeypatch, f"--model={model_file}", f"--configs={data}", f"--output={output}",
        "--compute_bec", "--default_dtype=float64",
    )  # fmt: skip
    for atoms, original in zip(read(output, ":"), frames, strict=False):
        model = random_model()
        expected = born_charges(model, make_batch([original], model)).numpy()
        got = atoms.arrays["MACE_BEC"].reshape(-1, 3, 3)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_other_models_are_evaluated_as_upstream_does(tmp_path):
    torch.save(ScaleShiftMACE(**backbone_settings()).double(), tmp_path / "s.model")
    data = write_data(tmp_path, [salty_water(), rock_salt()], "in.xyz")
    for module in ("mace", "mace_polmp"):
        arguments = [
            f"--model={tmp_path}/s.model", f"--configs={data}", f"--output={tmp_path}/{module}.xyz"
        ]  # fmt: skip
        result = run_module(f"{module}.cli.eval_configs", arguments, tmp_path)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "mace.xyz").read_bytes() == (tmp_path / "mace_polmp.xyz").read_bytes()


def test_bad_input_is_one_line_and_leaves_nothing(files, monkeypatch, capsys):
    model_file, data, output, _ = files
    text = output.with_name("text.model")
    text.write_text("no model")
    empty = output.with_name("empty.xyz")
    empty.touch()
    gold = salty_water()
    gold.numbers[0] = 79
    other = write_data(output.parent, [salty_water(), gold], "gold.xyz")
    cases = [
        (text, data, [], "text.model: not a model file"),
        (model_file, empty, [], "empty.xyz: the file is empty"),
        (model_file, other, [], "gold.xyz: frame 1: the model does not know Au"),
        (model_file, data, ["--compute_bec"], "frame 2: --compute_bec: Born charges of slabs are"),
        (model_file, data, ["--head=Other"], "--head must be one of Default"),
    ]
    for model, configs, more, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run(
                monkeypatch, f"--model={model}", f"--configs={configs}", f"--output={output}", *more
            )
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not output.exists()


def test_total_charges_reach_a_model_that_is_constrained_to_them(tmp_path, monkeypatch):
    model = random_model(LongRangeOptions(constrain_charge="softness"))
    torch.save(model, tmp_path / "m.model")
    frames = [salty_water() for _ in range(3)]
    frames[1].info["total_charge"] = 1.0
    frames[2].info["charge"] = -2.0
    write(tmp_path / "in.xyz", frames, format="extxyz")
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--model", "m.model", "--configs", "in.xyz", "--output", "out.xyz")
    sums = [atoms.arrays["MACE_charges"].sum() for atoms in read(tmp_path / "out.xyz", ":")]
    np.testing.assert_allclose(sums, [0, 1, -2], atol=1e-6)


@pytest.mark.parametrize("name", ["m.safetensors", "single.model", "single.safetensors"])
def test_any_file_of_a_model_is_evaluated(files, monkeypatch, name):
    """In the model's own precision unless another is asked for."""
    _, data, output, frames = files
    model = random_model()
    write_model(copy.deepcopy(model).float() if "single" in name else model, output.parent / name)
    run(monkeypatch, f"--model={output.parent / name}", f"--configs={data}", f"--output={output}")
    digits = 1e-3 if "single" in name else 1e-6
    for atoms, original in zip(read(output, ":"), frames, strict=True):
        expected = float(evaluate(model, original)["energy"].detach())
        assert atoms.info["MACE_energy"] == pytest.approx(expected, abs=digits)


def test_total_charges_from_the_command(tmp_path, monkeypatch, capsys):
    """For structures that say nothing; one that says something else is refused."""
    model = random_model(LongRangeOptions(constrain_charge="softness"))
    torch.save(model, tmp_path / "m.model")
    write_data(tmp_path, [salty_water()] * 2, "in.xyz")
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "m.model", "--configs", "in.xyz", "--output", "out.xyz"]
    run(monkeypatch, *arguments)
    assert "total charge 0 e of 2 of 2 structures: nothing given" in "".join(capsys.readouterr())
    more = [*arguments, "--total_charge", "2"]
    run(monkeypatch, *more)
    assert "nothing given" not in "".join(capsys.readouterr())
    sums = [atoms.arrays["MACE_charges"].sum() for atoms in read(tmp_path / "out.xyz", ":")]
    np.testing.assert_allclose(sums, 2.0, atol=1e-6)
    charged = salty_water()
    charged.info["charge"] = 1
    write_data(tmp_path, [charged], "in.xyz")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *more)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.strip().count("\n") == 0
    assert "--total_charge 2" in error


def test_of_several_heads_one_must_be_named(files, monkeypatch, capsys):
    """Upstream takes the last without a word."""
    _, data, output, frames = files
    settings = backbone_settings() | dict(
        atomic_energies=np.array([[-1.0] * 4, [-2.0] * 4]),
        atomic_inter_scale=[1.0, 1.0],
        atomic_inter_shift=[0.0, 0.0],
    )
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    model = MultipoleMACE(**settings, heads=["one", "two"])
    torch.set_default_dtype(previous)
    torch.save(model, output.parent / "two.model")
    command = [f"--model={output.parent}/two.model", f"--configs={data}", f"--output={output}"]
    with pytest.raises(SystemExit):
        run(monkeypatch, *command)
    error = capsys.readouterr().err
    assert "the model has several heads, one, two" in error and not output.exists()
    energies = []
    for head in ("one", "two"):
        run(monkeypatch, *command, f"--head={head}")
        energies.append(read(output, 0).info["MACE_energy"])
    assert energies[0] - energies[1] != pytest.approx(0.0, abs=1e-3)


def test_results_may_be_written_without_a_prefix(files, monkeypatch):
    """ASE then reads them as a calculator's."""
    model_file, data, output, _ = files
    frames = {}
    for prefix in ("", "MACE_"):
        run(
            monkeypatch, f"--model={model_file}", f"--configs={data}", f"--output={output}",
            f"--info_prefix={prefix}", "--compute_stress",
        )  # fmt: skip
        frames[prefix] = read(output, ":")
    for atoms, same in zip(frames[""], frames["MACE_"], strict=True):
        assert atoms.get_potential_energy() == pytest.approx(same.info["MACE_energy"], abs=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), same.arrays["MACE_forces"], atol=1e-7)
        np.testing.assert_allclose(atoms.get_charges(), same.arrays["MACE_charges"], atol=1e-7)
