"""`mace_polmp evaluate`: errors of known errors, whatever labels a file has."""

import csv

import numpy as np
import pytest
import torch
from ase.io import write
from mace.modules import ScaleShiftMACE

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from tests.helpers import backbone_settings, random_model, rattled, rock_salt, salty_water

OPTIONS = LongRangeOptions(induced="dipole")


@pytest.fixture
def files(tmp_path):
    torch.save(random_model(OPTIONS), tmp_path / "m.model")
    return tmp_path


def labelled(model_file, frames, shift=0.0):
    """The model's own results as labels, off by a known shift."""
    calculator = MultipoleMACECalculator(model_file, default_dtype="float64")
    for atoms in frames:

        def result(name, atoms=atoms):
            return calculator.get_property(name, atoms)

        atoms.info["REF_energy"] = result("energy") + shift * len(atoms)
        atoms.arrays["REF_forces"] = result("forces") + shift
        born = result("born_charges") + shift
        atoms.arrays["REF_born_charges"] = born.reshape(-1, 9)
        atoms.info["REF_polarizability"] = result("electronic_polarizability") + shift
        if atoms.pbc.all():
            atoms.info["REF_stress"] = result("stress") + shift
        else:
            atoms.info["REF_dipole"] = result("dipole") + shift
    return frames


def evaluate(folder, *more):
    command = ["evaluate", "--configs", folder / "data.xyz", "--output", folder / "out", *more]
    if "--model" not in more:
        command += ["--model", folder / "m.model"]
    main([str(c) for c in command])
    with open(folder / "out" / "errors.csv", newline="") as file:
        return {(r["quantity"], r["unit"], r["element"]): r for r in csv.DictReader(file)}


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_errors_are_the_shift_of_the_labels(files, shift, capsys):
    frames = [rattled(salty_water(), seed, 0.05) for seed in range(3)]
    frames += [rattled(rock_salt(), seed, 0.05) for seed in range(2)]
    write(files / "data.xyz", labelled(files / "m.model", frames, shift))
    rows = evaluate(files)
    counts = {"dipole": 9, "stress": 18, "polarizability": 45, "forces": 120, "born_charges": 360}
    factors = {"forces": 1000, "stress": 1000}
    for name, count in counts.items():
        (row,) = (r for key, r in rows.items() if key[0] == name and key[2] == "all")
        assert int(row["values"]) == count
        assert float(row["MAE"]) == pytest.approx(factors.get(name, 1) * shift, abs=2e-5)
        assert float(row["RMSE"]) == pytest.approx(factors.get(name, 1) * shift, abs=2e-5)
    assert float(rows["energy", "meV/atom", "all"]["MAE"]) == pytest.approx(1000 * shift, abs=1e-4)
    elements = {key[2] for key in rows if key[0] == "born_charges"}
    assert elements == {"all", "H", "O", "Na", "Cl"}
    assert float(rows["forces", "meV/Å", "all"]["R2"]) > 0.9
    for name in (*counts, "energy"):
        assert (files / "out" / f"parity_{name}.png").stat().st_size > 5000
    out = capsys.readouterr().out
    assert "5 structures" in out and "acoustic sum rule" in out


def test_missing_labels_are_left_out_and_keys_can_be_named(files, capsys):
    frames = labelled(files / "m.model", [rattled(rock_salt(), seed, 0.05) for seed in range(2)])
    for key in ("REF_energy", "REF_stress", "REF_polarizability"):
        frames[0].info.pop(key)
    for atoms in frames:
        born = atoms.arrays.pop("REF_born_charges").reshape(-1, 3, 3)
        atoms.arrays["bec"] = born.swapaxes(1, 2).reshape(-1, 9)
        atoms.arrays["forces"] = atoms.arrays.pop("REF_forces")
    write(files / "data.xyz", frames)
    more = ("--born_charges_key", "bec", "--transposed_born_charges", "--forces_key", "forces")
    rows = evaluate(files, *more)
    assert int(rows["energy", "meV", "all"]["values"]) == 1
    assert float(rows["born_charges", "e", "all"]["MAE"]) < 1e-6
    assert float(rows["forces", "meV/Å", "all"]["MAE"]) < 1e-3
    rows = evaluate(files, "--born_charges_key", "bec")
    assert float(rows["born_charges", "e", "all"]["MAE"]) > 2e-5
    scaled = evaluate(files, *more, "--epsilon_infinity", "4")["born_charges", "e", "all"]
    assert float(scaled["R2"]) < 0.5


def test_a_pattern_names_several_models(files):
    for seed in (0, 1):
        torch.save(random_model(OPTIONS, seed=seed), files / f"c{seed}.model")
    write(files / "data.xyz", labelled(files / "m.model", [salty_water()]))
    rows = evaluate(files, "--model", files / "c*.model")
    assert float(rows["energy", "meV/atom", "all"]["MAE"]) > 0


def test_a_plain_mace_has_energies_forces_and_stress(files):
    frames = labelled(files / "m.model", [rattled(rock_salt(), seed, 0.05) for seed in range(2)])
    write(files / "data.xyz", frames)
    torch.manual_seed(0)
    torch.save(ScaleShiftMACE(**backbone_settings()), files / "plain.model")
    rows = evaluate(files, "--model", files / "plain.model")
    assert {key[0] for key in rows} == {"energy", "forces", "stress"}


def test_bad_input_is_refused(files, capsys):
    def refused(message, *more):
        with pytest.raises(SystemExit):
            evaluate(files, *more)
        assert message in capsys.readouterr().err
        assert not (files / "out").exists()

    refused("data.xyz: no such file")
    write(files / "data.xyz", [salty_water()])
    refused("no frame has any of the labels REF_energy, REF_forces")
    refused("--energy_key E: no frame of", "--energy_key", "E")
    atoms = salty_water()
    atoms.info["REF_dipole"] = [1.0, 2.0]
    write(files / "data.xyz", [atoms])
    refused("frame 0: the label of dipole must be [3] numbers, got [2]")
    atoms.info["REF_dipole"] = [1.0, 2.0, np.nan]
    write(files / "data.xyz", [atoms])
    refused("frame 0: the label of dipole holds NaN")
    atoms.symbols[0] = "Au"
    write(files / "data.xyz", [atoms])
    refused("frame 0: the model does not know Au")
