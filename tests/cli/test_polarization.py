"""Polarizations as labels, from a file to a model and its evaluation."""

import csv
import re

import numpy as np
import pytest
import torch
from ase.io import read, write

from mace_polmp.cli.eval_configs import main as eval_configs
from mace_polmp.cli.main import main
from mace_polmp.cli.run_train import main as run_train
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.io import load_model
from tests.cli.runs import flags, log_of, open_frames, periodic_frames, write_data
from tests.helpers import make_calculator, random_model, rattled, rock_salt, salty_water, wet_slab

pytestmark = pytest.mark.usefixtures("clean_state")

BONDS = LongRangeOptions(charge_readout="bond", induced="dipole", epsilon_infinity=2.0)
CHARGES = {11: 1.0, 17: -1.0}
ON = dict(model="MultipoleMACE", charge_readout="bond", induced="dipole", polarization_weight=100)


def ionic_frames(n=8, born=True):
    """NaCl of ions of one charge each; every label of polarization on a branch of its own."""
    random = np.random.default_rng(1)
    frames = periodic_frames(n)
    for atoms in frames:
        charges = np.array([CHARGES[int(z)] for z in atoms.numbers])
        jump = random.integers(-3, 4, size=3) @ atoms.cell.array
        atoms.info["REF_polarization"] = charges @ atoms.positions + jump
        if born:
            atoms.arrays["REF_born_charges"] = np.einsum("i,ab->iab", charges, np.eye(3)).reshape(
                -1, 9
            )
    return frames


def slab_with_born_charges():
    """A slab that counts for its Born charges alone, none of which is large."""
    slab = wet_slab()[:2]
    slab.info.update(config_energy_weight=0, config_forces_weight=0)
    charges = np.array([CHARGES[int(z)] for z in slab.numbers])
    slab.arrays["REF_born_charges"] = np.einsum("i,ab->iab", charges, np.eye(3)).reshape(-1, 9)
    return slab


def errors_in(log, name):
    return [float(x) for x in re.findall(rf"RMSE_{name}= *([0-9.e+-]+)", log)]


def test_training_learns_polarizations_and_born_charges_of_slabs(tmp_path):
    frames = ionic_frames()
    valid = write_data(tmp_path, [*ionic_frames(2), slab_with_born_charges()], "valid.xyz")
    settings = dict(
        ON,
        train_file=write_data(tmp_path, [*frames, slab_with_born_charges()]),
        valid_file=valid,
        valid_fraction=None,
        born_charges_weight=10,
        forces_weight=1,
        batch_size=2,
        lr=0.02,
        plot="True",
    )
    run_train(flags(tmp_path, **settings, max_num_epochs=3))
    first = log_of(tmp_path)
    for name in ("polarization", "born_charges"):
        errors = errors_in(first, name)
        assert errors[-1] < 0.5 * errors[0], name  # of ions that it first holds for neutral
    assert re.search(r"valid_Default *\| *polarization *\| *e Å *\| *6 *\|", first)
    assert (tmp_path / "results" / "m_run-3_train_labels.png").stat().st_size > 5000
    run_train(flags(tmp_path, **settings, max_num_epochs=4, restart_latest=True))
    assert len(errors_in(log_of(tmp_path), "polarization")) > len(errors_in(first, "polarization"))


def test_the_head_alone_and_stage_two_in_single_precision(tmp_path):
    """On cached features of the backbone, and with a weight that only stage two has."""
    data = write_data(tmp_path, ionic_frames(born=False))
    settings = dict(
        ON, polarization_weight=0, swa_polarization_weight=100, training_mode="head_only"
    )
    run_train(
        flags(
            tmp_path, **settings, train_file=data, swa=True, start_swa=1, default_dtype="float32",
            formal_charges="Na:1,Cl:-1", forces_weight=1, max_num_epochs=3,
        )
    )  # fmt: skip
    log = log_of(tmp_path)
    assert "caching features" in log.lower() and "not cached" not in log
    errors = errors_in(log, "polarization")
    assert all(error < 0.5 for error in errors)  # formal charges are those of the labels
    assert "polarization_weight=100" in log and "polarization_weight=0.000" in log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(charge_readout="transfer"), "--polarization_weight needs --charge_readout bond"),
        (dict(formal_charges="Na:0.5,Cl:-0.5"), "that are whole numbers, got Na:0.5,Cl:-0.5"),
        (dict(polarization_key="P"), "none of 8 frames has the label 'P' that --polarization_we"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, capsys, changes, message):
    data = write_data(tmp_path, ionic_frames())
    with pytest.raises(SystemExit):
        run_train(flags(tmp_path, train_file=data, **{**ON, **changes}))
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.xyz"]


def test_evaluation_compares_on_the_nearest_branch(tmp_path, capsys):
    torch.save(random_model(BONDS), tmp_path / "m.model")
    calculator = make_calculator(tmp_path / "m.model", default_dtype="float64")
    frames = [rattled(rock_salt("triclinic"), seed, 0.05) for seed in range(3)] + [wet_slab()]
    for number, atoms in enumerate(frames):
        label = calculator.get_property("dipole", atoms) + [0.01, -0.01, 0.01]
        if number == 2:  # so wrong that no branch is right
            label = label + 0.4 * atoms.cell.array[0]
        atoms.info["REF_polarization"] = label - 2 * atoms.cell.array[0] + atoms.cell.array[1]
        born = calculator.get_property("born_charges", atoms)
        atoms.arrays["REF_born_charges"] = born.reshape(-1, 9)
    write(tmp_path / "data.xyz", frames)
    command = ["evaluate", "--model", tmp_path / "m.model", "--configs", tmp_path / "data.xyz"]
    main([str(c) for c in [*command, "--output", tmp_path / "out"]])
    said = capsys.readouterr().out
    assert "note: polarization: errors of 1 of 4 structures are above a quarter" in said
    with open(tmp_path / "out" / "errors.csv", newline="") as file:
        rows = {r["quantity"]: r for r in csv.DictReader(file) if r["element"] == "all"}
    assert rows["polarization"]["values"] == "12" and rows["born_charges"]["values"] == "288"
    assert float(rows["born_charges"]["MAE"]) < 1e-6
    assert (tmp_path / "out" / "parity_polarization.png").stat().st_size > 5000
    write(tmp_path / "data.xyz", [frames[0], frames[1], frames[3]])
    main([str(c) for c in [*command, "--output", tmp_path / "out"]])
    assert "above a quarter" not in capsys.readouterr().out
    with open(tmp_path / "out" / "errors.csv", newline="") as file:
        rows = {r["quantity"]: r for r in csv.DictReader(file) if r["element"] == "all"}
    assert float(rows["polarization"]["RMSE"]) == pytest.approx(0.01, abs=1e-6)


def test_training_learns_a_permittivity_from_its_label(tmp_path, capsys):
    """Of a model without induced dipoles it is all that there is; the evaluation reads it too."""
    frames = periodic_frames(6)
    for atoms in frames:
        atoms.info["REF_epsilon_infinity"] = 1.75
    data = write_data(tmp_path, frames)
    settings = dict(induced="none", epsilon_infinity="learn", polarizability_weight=100, lr=0.01)
    run_train(
        flags(
            tmp_path, model="MultipoleMACE", train_file=data, batch_size=1, forces_weight=1,
            max_num_epochs=3, **settings,
        )
    )  # fmt: skip
    errors = errors_in(log_of(tmp_path), "polarizability")
    assert errors[-1] < 0.5 * errors[0]
    assert load_model(tmp_path / "m.model").permittivity() == pytest.approx(1.75, abs=0.03)
    command = ["evaluate", "--model", tmp_path / "m.model", "--configs", data]
    main([str(c) for c in [*command, "--output", tmp_path / "out"]])
    with open(tmp_path / "out" / "errors.csv", newline="") as file:
        rows = {r["quantity"]: r for r in csv.DictReader(file) if r["element"] == "all"}
    assert rows["polarizability"]["values"] == "54"
    assert float(rows["polarizability"]["RMSE"]) == pytest.approx(errors[-1], rel=0.01)


def test_other_models_have_no_polarization(tmp_path, capsys):
    torch.save(random_model(LongRangeOptions()), tmp_path / "m.model")
    write(tmp_path / "data.xyz", ionic_frames(2, born=False))
    command = ["evaluate", "--model", tmp_path / "m.model", "--configs", tmp_path / "data.xyz"]
    main([str(c) for c in [*command, "--output", tmp_path / "out"]])
    assert "polarization" not in capsys.readouterr().out


def test_files_of_results_have_physical_polarizations_and_polarizabilities(tmp_path, monkeypatch):
    torch.save(random_model(BONDS), tmp_path / "m.model")
    calculator = make_calculator(tmp_path / "m.model", default_dtype="float64")
    frames = [rock_salt("triclinic"), wet_slab(), salty_water()]
    write(tmp_path / "in.xyz", frames)
    command = ["--model", tmp_path / "m.model", "--configs", tmp_path / "in.xyz"]
    eval_configs([str(c) for c in [*command, "--output", tmp_path / "out.xyz"]])
    for atoms, original in zip(read(tmp_path / "out.xyz", ":"), frames, strict=True):
        if not original.pbc.any():
            alpha, sums = atoms.info["MACE_electronic_polarizability"], "MACE_polarizability"
            np.testing.assert_allclose(alpha, atoms.info[sums], atol=1e-9)
            assert "MACE_polarization" not in atoms.info
            continue
        alpha = calculator.get_property("electronic_polarizability", original)
        written = np.reshape(atoms.info["MACE_electronic_polarizability"], (3, 3))
        np.testing.assert_allclose(written, alpha, atol=1e-6)
        expected = calculator.get_property("dipole", original)
        np.testing.assert_allclose(atoms.info["MACE_polarization"], expected, atol=1e-6)


def test_check_data_suggests_what_trains_on_them(tmp_path, capsys):
    frames = ionic_frames(10)
    frames[3].info["REF_polarization"] = 0.45 * frames[3].cell.array[0]
    data = write_data(tmp_path, frames)
    main(["check-data", str(data)])
    said = capsys.readouterr().out
    assert "polarization (REF_polarization)" in said and "10 of 10 frames" in said
    assert "above a quarter of the shortest lattice vector times e, in frames 3:" in said
    suggested = said.partition("flags:")[2].split()[1:]
    assert "--polarization_weight 100 --born_charges_weight 10" in " ".join(suggested)
    suggested[suggested.index("NAME")] = "m"
    keep = ("num_channels", "r_max", "max_L", "batch_size", "E0s", "valid_fraction")
    small = [f for f in flags(tmp_path) if not f.startswith(tuple(f"--{k}" for k in keep))]
    run_train([*suggested, "--num_channels=4", *small, "--max_num_epochs=1"])
    assert "RMSE_polarization" in log_of(tmp_path)


def test_training_learns_charges_of_atoms(tmp_path):
    """On cached features first, then everything; charges of a population analysis, for instance."""
    mean = {1: 0.3, 8: -0.6, 11: 0.9, 17: -0.8}
    frames = open_frames(8)
    for atoms in frames:
        atoms.arrays["partial"] = np.array([mean[int(z)] for z in atoms.numbers])
    data = write_data(tmp_path, frames)
    settings = dict(charges_key="partial", charges_weight=10, forces_weight=1, lr=0.02)
    run_train(
        flags(
            tmp_path, model="MultipoleMACE", train_file=data, batch_size=1, max_num_epochs=4,
            training_mode="head_first", head_epochs=3, **settings,
        )
    )  # fmt: skip
    log = log_of(tmp_path)
    assert "caching features" in log.lower()
    errors = errors_in(log, "charges")
    assert errors[-1] < 0.5 * errors[0]
    assert re.search(r"train_Default *\| *charges *\| *e *\|", log)
