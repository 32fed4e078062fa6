"""`mace_polmp check-data`: what is in a file, what is wrong with it, which flags fit."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mace_polmp.cli.main import main
from mace_polmp.cli.run_train import main as run_train
from mace_polmp.structures import as_slab
from mace_polmp.units import EPS0
from tests.cli.runs import flags, log_of, open_frames, periodic_frames, write_data
from tests.helpers import rock_salt, wet_slab

pytestmark = pytest.mark.usefixtures("clean_state")


def check(capsys, path, *arguments, code=0):
    """What is printed, in its parts."""
    try:
        main(["check-data", str(path), *arguments])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    assert status == code
    text = capsys.readouterr().out
    rows = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition("  ")
        rows[name] = value.strip()
    return text, rows


def test_counts_elements_and_boundaries(tmp_path, capsys):
    slab = wet_slab()
    slab.info["REF_energy"] = -1.0
    slab.arrays["REF_forces"] = np.zeros((len(slab), 3))
    frames = [*open_frames(3), *periodic_frames(2), slab]
    text, rows = check(capsys, write_data(tmp_path, frames))
    assert rows["frames"] == "6"
    assert rows["boundary conditions"] == "open 3, periodic 2, slab 1"
    counts = {symbol: sum(list(a.symbols).count(symbol) for a in frames) for symbol in ("H", "Na")}
    assert f"H {counts['H']}" in rows["elements"] and f"Na {counts['Na']}" in rows["elements"]
    assert rows["stress (REF_stress)"] == "2 of 6 frames"
    assert "problems" not in text


def test_what_cannot_be_trained_on(tmp_path, capsys):
    frames = open_frames(5)
    del frames[0].arrays["REF_forces"], frames[1].info["REF_energy"]
    frames[2].positions[1] = frames[2].positions[0]
    frames[3].positions[0, 0] = np.nan
    frames[4].info["REF_dipole"] = [1.0, 2.0]
    text, _ = check(capsys, write_data(tmp_path, frames), code=1)
    problems = text.partition("problems:")[2]
    assert "1 frames lack REF_forces" in problems and "1 frames lack REF_energy" in problems
    assert "frame 2: atoms 0 and 1 are closer than 0.05" in problems
    assert "frame 3: positions hold NaN" in problems
    assert "frame 4: the label of dipole must be [3] numbers" in problems


def test_it_agrees_with_the_checks_of_a_training(tmp_path, capsys):
    """Frames that are excused, labels that training refuses, a charge that is no number."""
    frames = [*open_frames(11), *periodic_frames(1)]
    del frames[0].arrays["REF_forces"], frames[1].info["REF_energy"]
    frames[0].info["config_forces_weight"] = frames[1].info["config_energy_weight"] = 0.0
    frames[-1].info["REF_dipole"] = np.zeros(3)
    path = write_data(tmp_path, frames)
    text, rows = check(capsys, path)
    assert rows["forces (REF_forces)"] == "11 of 12 frames"
    assert "not for --dipole_weight: frame 11: has a label of dipole" in text
    assert "--dipole_weight" not in text.partition("flags:")[2]
    frames[3].info["total_charge"] = "plus one"
    text, _ = check(capsys, write_data(tmp_path, frames), code=1)
    assert "frame 3: the total charge 'total_charge' must be one finite number, got plus" in text


def test_what_looks_odd(tmp_path, capsys):
    frames = open_frames(6)
    for atoms in frames:  # Hartree/bohr
        atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] / 51.422
    frames[1].arrays["REF_forces"][0] += 1.0
    frames[2].positions[1] = frames[2].positions[0] + [0.3, 0, 0]
    frames[3].info["REF_energy"] *= 27.2114
    text, rows = check(capsys, write_data(tmp_path, frames))
    notes = text.partition("notes:")[2].partition("flags:")[0]
    assert "atoms closer than 0.5 Å in frames 2" in notes
    assert "forces do not sum to zero within 0.1 eV/Å in frames 1" in notes
    assert "eV/atom beyond composition" in notes
    assert rows["closest atoms"] == "0.300 Å in frame 2"
    small = open_frames(6)
    for atoms in small:
        atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] / 51.422 / 10
    text, _ = check(capsys, write_data(tmp_path, small))
    assert "forces are small for eV/Å: in Hartree/bohr" in text
    for atoms in small:
        atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] * 1e5
    text, _ = check(capsys, write_data(tmp_path, small))
    assert "forces are large for eV/Å: in kcal/mol/Å" in text


def test_the_flags_it_suggests_train(tmp_path, capsys):
    """Mixed charges and dipoles: the suggested command runs and uses both."""
    frames = open_frames(12)
    for number, atoms in enumerate(frames):
        atoms.info["total_charge"] = float(number < 6)
    path = write_data(tmp_path, frames)
    text, rows = check(capsys, path)
    assert rows["total charge (total_charge)"] == "0 e: 6, 1 e: 6"
    suggested = text.partition("flags:")[2].split()[1:]
    assert "--total_charge_weight" in suggested and "--dipole_weight" in suggested
    suggested[suggested.index("NAME")] = "m"
    keep = ("num_channels", "r_max", "max_L", "batch_size", "E0s", "valid_fraction")
    small = [f for f in flags(tmp_path) if not f.startswith(tuple(f"--{k}" for k in keep))]
    run_train([*suggested, "--num_channels=4", *small])
    log = log_of(tmp_path)
    assert "induced='dipole'" in log and "RMSE_dipole" in log


def test_labels_under_other_names(tmp_path, capsys):
    frames = open_frames(4)
    for atoms in frames:
        atoms.info["e"] = atoms.info.pop("REF_energy")
        atoms.arrays["f"] = atoms.arrays.pop("REF_forces")
    path = write_data(tmp_path, frames)
    check(capsys, path, code=1)
    text, rows = check(capsys, path, "--energy_key", "e", "--forces_key", "f")
    assert rows["energy (e)"] == "4 of 4 frames"
    assert "--energy_key e --forces_key f" in text
    # ASE's own names end up in a calculator.
    for atoms in frames:
        labels = dict(energy=atoms.info.pop("e"), forces=atoms.arrays.pop("f"))
        atoms.calc = SinglePointCalculator(atoms, **labels)
    write(tmp_path / "ase.xyz", frames, format="extxyz")
    keys = ("--energy_key", "energy", "--forces_key", "forces")
    _, rows = check(capsys, tmp_path / "ase.xyz", *keys)
    assert rows["forces (forces)"] == "4 of 4 frames"


@pytest.mark.parametrize("content", ["", "no structure"])
def test_files_that_are_none(tmp_path, capsys, content):
    path = tmp_path / "bad.xyz"
    path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["check-data", str(path)])
    assert stopped.value.code == 1
    assert "bad.xyz: " in capsys.readouterr().err


def test_vacuum_in_a_periodic_cell_is_seen(tmp_path, capsys):
    """It names as_slab with the vacuum that the lattice needs, whatever axis it is along."""
    frames = []
    for axis in (2, 0):
        atoms = rock_salt()
        atoms.cell[axis, axis] += 9.0
        atoms.info["REF_energy"] = 0.0
        atoms.arrays["REF_forces"] = np.zeros((8, 3))
        frames.append(atoms)
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "along axis 2 of frame 0 (in 2 frames)" in text
    assert "as_slab(atoms, axis=2, vacuum=8)" in text
    crystal = write_data(tmp_path, periodic_frames(2))
    text, _ = check(capsys, crystal)
    assert "vacuum in" not in text
    slab = as_slab(frames[0], 2, vacuum=8.5)
    assert (slab.pbc == [True, True, False]).all()
    text, _ = check(capsys, write_data(tmp_path, [slab]))
    assert "vacuum in" not in text and "problems" not in text


def test_equal_problems_of_many_frames_are_one_line(tmp_path, capsys):
    frames = open_frames(30)
    for number, atoms in enumerate(frames[5:]):
        atoms.info["REF_stress"] = np.ones(5) * number
    text, _ = check(capsys, write_data(tmp_path, frames), code=1)
    lines = text.partition("problems:")[2].partition("flags, once")[0].strip().splitlines()
    assert len(lines) == 1
    assert "frame 5: " in lines[0] and "(likewise frames 6, 7, 8" in lines[0]


def test_charges_and_isolated_atoms(tmp_path, capsys):
    """What is there is counted; what contradicts itself is a problem here as in a training."""
    frames = open_frames(6)
    frames[0].info["total_charge"] = 1.0
    for energy in (-13.0, -14.0):
        atom = Atoms("H", info={"REF_energy": energy, "config_type": "IsolatedAtom"})
        frames.append(atom)
    path = write_data(tmp_path, frames)
    text, rows = check(capsys, path, code=1)
    assert "1 e: 1 (2 frames say nothing: 0 e)" in rows["total charge (total_charge)"]
    problem = "frame 7: is an IsolatedAtom of H with -14 eV, but frame 6 has -13 eV"
    assert problem in text
    with pytest.raises(SystemExit):
        run_train(flags(tmp_path, model="MultipoleMACE", train_file=path, E0s=None))
    assert "is an IsolatedAtom of H with -14 eV" in capsys.readouterr().err


def test_energies_beyond_single_precision_are_said(tmp_path, capsys):
    frames = open_frames(4)
    for atoms in frames:
        atoms.info["REF_energy"] -= 2e5
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "single precision has steps of 0.01" in text


def test_a_wire_is_a_problem_and_no_traceback(tmp_path, capsys):
    frames = periodic_frames(2)
    frames[0].pbc = [True, False, False]
    text, _ = check(capsys, write_data(tmp_path, frames), code=1)
    assert "frame 0: has pbc T F F: a single periodic direction" in text
    assert "flags, once that is mended:" in text


def test_ions_get_constrained_charges(tmp_path, capsys):
    """Also where all have the same charge."""
    frames = [molecule("OH") for _ in range(4)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=number)
        atoms.info.update(total_charge=-1.0, REF_energy=-120.0)
        atoms.arrays["REF_forces"] = np.zeros((2, 3))
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "--constrain_charge softness" in text and "--conserve_charge" not in text


def test_ions_in_a_cell_get_flags_that_a_training_takes(tmp_path, capsys):
    """A constraint does not go with a permittivity there, which labels of Born charges ask for."""
    frames = [molecule("OH") for _ in range(4)]
    for number, atoms in enumerate(frames):
        atoms.set_cell(8.0 * np.eye(3))
        atoms.pbc = True
        atoms.rattle(0.02, seed=number)
        atoms.info.update(total_charge=-1.0, REF_energy=-120.0)
        atoms.arrays["REF_forces"] = np.zeros((2, 3))
        atoms.arrays["REF_born_charges"] = np.tile(-0.5 * np.eye(3).reshape(-1), (2, 1))
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "--total_charge_weight 100 --induced dipole --epsilon_infinity learn" in text
    assert "--constrain_charge" not in text


def test_ions_among_molecules_get_a_label(tmp_path, capsys):
    """The constraint would give a part of an ion's charge to a molecule far away."""
    frames = open_frames(4)
    for atoms in frames:
        atoms.info["total_charge"] = -1.0
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "--total_charge_weight 100 --induced dipole" in text
    assert "--constrain_charge" not in text


def test_isolated_atoms_of_some_elements_leave_the_others_to_averages(tmp_path, capsys):
    """The command that it prints can be run."""
    frames = open_frames(12)
    frames.append(Atoms("H", info={"REF_energy": -13.0, "config_type": "IsolatedAtom"}))
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "--E0s average" in text
    for symbol, energy in (("O", -400.0), ("Cl", -300.0)):
        info = {"REF_energy": energy, "config_type": "IsolatedAtom"}
        frames.append(Atoms(symbol, info=info))
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "--E0s" not in text.partition("flags:")[2]


@pytest.mark.parametrize("labelled", [False, True])
def test_crystals_of_ions(tmp_path, capsys, labelled):
    """Charges of the ions, with the permittivity of the labels: 1 + α/(eps0 V)."""
    frames = [rock_salt() for _ in range(4)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=number)
        atoms.info["REF_energy"] = -20.0 - 0.1 * number
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
        if labelled:
            charges = np.select([atoms.numbers == 11, atoms.numbers == 17], [1.0, -1.0])
            atoms.info["REF_polarization"] = charges @ atoms.positions
            atoms.info["REF_polarizability"] = 1.25 * EPS0 * atoms.get_volume() * np.eye(3)
    # Of atoms by themselves only the energies are used.
    info = {"REF_energy": -1.0, "config_type": "IsolatedAtom"}
    frames += [Atoms(symbol, info=info) for symbol in ("Na", "Cl")]
    text, _ = check(capsys, write_data(tmp_path, frames))
    notes, _, suggested = text.partition("flags:")
    if labelled:
        wanted = "--charge_readout bond --induced dipole --formal_charges Na:1,Cl:-1"
        assert f"{wanted} --epsilon_infinity 2.25" in suggested
        assert "--epsilon_infinity learn" not in suggested
    else:
        assert "--formal_charges Na:1,Cl:-1 --epsilon_infinity VALUE, the measured one" in notes
        assert "--formal_charges" not in suggested
        assert "in place of" not in notes


def test_advice_for_crystals_of_ions_with_born_charges_names_one_permittivity(tmp_path, capsys):
    """Formal charges need a number, where the flags say learn; not of cells with a charge."""
    frames = [rock_salt() for _ in range(4)]
    for atoms in frames:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = -1.0, np.zeros((len(atoms), 3))
        charges = np.select([atoms.numbers == 11, atoms.numbers == 17], [1.0, -1.0])
        atoms.arrays["REF_born_charges"] = (charges[:, None, None] * np.eye(3)).reshape(-1, 9)
    text, _ = check(capsys, write_data(tmp_path, frames))
    assert "VALUE, the measured one, in place of --epsilon_infinity learn" in text
    frames[0].info["total_charge"] = 1.0
    assert "crystals of ions" not in check(capsys, write_data(tmp_path, frames))[0]


def test_molecules_and_odd_crystals_are_none_of_ions(tmp_path, capsys):
    salt = rock_salt()
    salt.numbers[0] = 17  # one Cl more, one Na less
    salt.info["REF_energy"], salt.arrays["REF_forces"] = -1.0, np.zeros((len(salt), 3))
    for frames in ([salt, salt], open_frames(3)):
        assert "crystals of ions" not in check(capsys, write_data(tmp_path, frames))[0]
