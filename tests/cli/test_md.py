"""`mace_polmp md` and `mace_polmp spectrum` as a user types them."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from scipy.signal import lfilter

from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from mace_polmp.units import BOLTZMANN, EPS0
from tests.helpers import random_model, rock_salt, salty_water


@pytest.fixture
def files(tmp_path):
    torch.save(random_model(LongRangeOptions()), tmp_path / "m.model")
    write(tmp_path / "cluster.xyz", salty_water())
    write(tmp_path / "crystal.xyz", rock_salt())
    return tmp_path


def flags(folder, structure, **changes):
    settings = {
        "model": folder / "m.model",
        "structure": folder / structure,
        "output": folder / "run",
        "temperature": 50,
        "every": 2,
        **changes,
    }
    out = ["md"]
    for key, value in settings.items():
        out += [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))]
    return out


def test_a_killed_run_goes_on(files, capsys):
    """Killed while it runs, it ends with the files of a run that was not."""
    command = flags(files, "cluster.xyz", ensemble="langevin", steps=150)
    process = subprocess.Popen(
        [sys.executable, "-m", "mace_polmp.cli.main", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    table = files / "run" / "md.csv"
    limit = time.time() + 300
    while not (table.exists() and table.read_text().count("\n") > 5) and time.time() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = table.read_text().count("\n")
    assert 5 < written < 76
    main(command)
    assert "150 steps, 0.075 ps of H4ClNaO2" in capsys.readouterr().out
    command[command.index("--output") + 1] = str(files / "whole")
    main(command)
    assert table.read_text() == (files / "whole" / "md.csv").read_text()
    assert len(read(files / "run" / "trajectory.traj", ":")) == 76


def test_md_and_spectra_of_a_crystal(files, capsys):
    """Infrared, Raman and dielectric constant from one run; what was not written is computed."""
    observables = ("dipole", "polarizability")
    main(flags(files, "crystal.xyz", steps=240, every=4, observables=observables))
    trajectory = str(files / "run" / "trajectory.xyz")
    main(["spectrum", "raman", trajectory, "--resolution", "400"])
    with pytest.raises(SystemExit):
        main(["spectrum", "ir", trajectory, "--resolution", "400"])
    assert "frames have no 'current', which ir needs" in capsys.readouterr().err
    model = ["--model", str(files / "m.model")]
    main(["spectrum", "ir", trajectory, "--resolution", "400", "--max_wavenumber", "800", *model])
    with pytest.raises(SystemExit):
        main(["spectrum", "dielectric", trajectory, *model, "--output", str(files / "eps")])
    assert "too short for a dielectric constant: 61 frames" in capsys.readouterr().err
    for name in ("trajectory_raman", "trajectory_ir"):
        table = np.genfromtxt(files / "run" / f"{name}.csv", delimiter=",", skip_header=1)
        assert np.isfinite(table).all() and len(table) > 10
        assert (files / "run" / f"{name}.png").stat().st_size > 10000
    header = (files / "run" / "trajectory_ir.csv").read_text().splitlines()[0]
    assert header == "wavenumber_cm-1,n_alpha_cm-1,cross_section_km/mol_per_cm-1"
    assert table[-1, 0] <= 800  # of the infrared spectrum, the last read
    assert not (files / "eps.png").exists() and not (files / "eps.svg").exists()


def test_dielectric_constant_of_a_trajectory_with_currents(tmp_path, capsys):
    """⟨ΔM²⟩/(3 eps0 V kT) of a known polarization; ε∞ by which the frames' current was screened."""
    rng = np.random.default_rng(0)
    n, step, memory, volume = 4000, 2.0, 100.0, 1000.0
    keep = np.exp(-step / memory)
    steps = rng.normal(size=(n, 3)) * np.sqrt(1 - keep**2)
    slow = lfilter([1.0], [1.0, -keep], lfilter([1 - keep], [1.0, -keep], steps, axis=0), axis=0)
    moment = 1.2 * slow / slow.std(0)
    current = np.gradient(moment, step, axis=0)
    frames = []
    for number in range(n):
        atoms = Atoms("I", cell=10 * np.eye(3), pbc=True, positions=[[0.0, 0, 0]])
        atoms.info.update(time_fs=number * step, current=current[number], epsilon_infinity=2.0)
        frames.append(atoms)
    path = str(tmp_path / "run.xyz")
    write(path, frames)
    fluctuation = 3 * 1.2**2 / (3.0 * EPS0 * volume * BOLTZMANN * 300.0)

    def constant(*more):
        main(["spectrum", "dielectric", path, "--temperature", "300", *more])
        out = capsys.readouterr().out
        found = re.search(r"permittivity ([\d.]+) .* constant ([\d.]+) ± ([\d.]+)", out)
        electronic, *said = map(float, found.groups())
        with open(tmp_path / "run_dielectric.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        value, error = float(last["static_permittivity"]), float(last["standard_error"])
        # What is printed has two digits of the error, the table all of them.
        assert said == pytest.approx([value, error], abs=0.05 * error + 0.05)
        return electronic, value, error

    electronic, value, error = constant()
    assert electronic == 2.0
    assert value == pytest.approx(2.0 + fluctuation, abs=4 * error) and error < 0.2 * value
    # Screened by 4 in place of 2 the current is √2 larger, and the fluctuations twice as large.
    electronic, other, _ = constant("--epsilon_infinity", "4")
    assert electronic == 4.0
    assert other - 4.0 == pytest.approx(2.0 * (value - 2.0), abs=0.03)


def test_permittivity_and_raman_of_written_polarizabilities(tmp_path, capsys):
    """ε∞ of a run is that of induced dipoles and of what screens charges, both in α of the frames.

    With another ε_e it is in proportion to it, and so are the changes of α: four times the activity
    for twice the ε_e. Earlier versions wrote α of the induced dipoles alone.
    """
    rng = np.random.default_rng(1)
    n, step, volume, screening, induced = 2000, 2.0, 1000.0, 2.0, 1.3
    current = np.diff(lfilter([0.02], [1.0, -0.98], rng.normal(size=(n + 1, 3)), axis=0), axis=0)
    noise = 0.01 * rng.normal(size=n)

    def run(kind, *more, is_physical=True, **info):
        alpha = EPS0 * volume * (induced - 1.0) + noise
        if is_physical:
            alpha = screening * alpha + (screening - 1.0) * EPS0 * volume
            info["defines_polarization"] = False
        frames = []
        for number in range(n):
            atoms = Atoms("I", cell=10 * np.eye(3), pbc=True, positions=[[0.0, 0, 0]])
            atoms.info.update(time_fs=number * step, current=current[number], **info)
            atoms.info.update(epsilon_infinity=screening, polarizability=alpha[number] * np.eye(3))
            frames.append(atoms)
        write(tmp_path / "run.xyz", frames)
        main(["spectrum", kind, str(tmp_path / "run.xyz"), "--temperature", "300", *more])
        if kind == "dielectric":
            return float(re.search(r"permittivity ([\d.]+) ", capsys.readouterr().out).group(1))
        table = np.genfromtxt(tmp_path / "run_raman.csv", delimiter=",", names=True)
        return table["isotropic_A4amu_per_cm1"].sum()

    assert run("dielectric") == pytest.approx(2.6, abs=2e-3)
    assert run("dielectric", is_physical=False) == pytest.approx(2.6, abs=2e-3)
    old = run("dielectric", is_physical=False, divided_by_chi=True)  # ε∞ was given as a whole
    assert old == pytest.approx(2.0, abs=2e-3)
    assert run("dielectric", "--epsilon_infinity", "4") == pytest.approx(5.2, abs=2e-3)
    activity = run("raman")
    assert run("raman", is_physical=False) == pytest.approx(activity, rel=1e-6)
    assert run("raman", "--epsilon_infinity", "4") == pytest.approx(4.0 * activity, rel=1e-6)
    with pytest.raises(SystemExit):  # 1 + χ of each frame would take the changes of α away
        run("raman", divided_by_chi=True)
    assert "divide_by_chi takes the changes of the polarizability" in capsys.readouterr().err


def test_fields_of_time(files):
    from mace_polmp.cli.main import build_parser
    from mace_polmp.cli.md import make_field

    def field(*more):
        command = flags(files, "cluster.xyz", steps=1)
        return make_field(build_parser().parse_args([*command, *map(str, more)]))

    assert field() is None
    assert field("--field", 0, 0, 0.1) == [0, 0, 0.1]
    wave = field("--field", 0, 0, 0.1, "--field_wavenumber", 1000)
    period = 1e7 / 1000 / 299.792458  # fs
    assert wave(period)[2] == pytest.approx(0.1)
    assert wave(period / 2)[2] == pytest.approx(-0.1)
    pulse = field("--field", 0.2, 0, 0, "--field_pulse", 50, 10)
    assert pulse(50)[0] == pytest.approx(0.2)
    assert pulse(60)[0] == pytest.approx(0.2 * np.exp(-0.5))
    main(flags(files, "cluster.xyz", steps=4, field=(0, 0, 0.3), field_pulse=(1, 1)))
    frames = read(files / "run" / "trajectory.xyz", ":")
    heights = [f.info["external_field"][2] for f in frames]
    np.testing.assert_allclose(heights, 0.3 * np.exp([-0.5, 0, -0.5]))


def test_the_model_of_a_run_is_compared_by_content(files, capsys):
    """A copy under another name is the same model; a retrained one under the same name is not."""
    command = flags(files, "cluster.xyz", steps=2)
    main(command)
    shutil.copy(files / "m.model", files / "copy.model")
    main(flags(files, "cluster.xyz", steps=4, model=files / "copy.model"))
    torch.save(random_model(LongRangeOptions(), seed=1), files / "m.model")
    with pytest.raises(SystemExit):
        main(flags(files, "cluster.xyz", steps=6))
    assert "belongs to a run with model (its content)" in capsys.readouterr().err


def test_bad_input_is_refused_in_one_line(files, capsys):
    def refused(message, command):
        with pytest.raises(SystemExit) as stop:
            main([str(c) for c in command])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 1 and message in error, error

    run = files / "run"
    refused("--steps must be at least 1", flags(files, "cluster.xyz", steps=0))
    refused("none.xyz: no such file", flags(files, "none.xyz", steps=1))
    refused("there is no frame 3", flags(files, "cluster.xyz", steps=1, frame=3))
    refused("--device cuda:9 is not av", flags(files, "cluster.xyz", steps=1, device="cuda:9"))
    refused("--field_pulse needs --field", flags(files, "cluster.xyz", steps=1, field_pulse=(1, 1)))
    refused("epsilon_infinity must be", flags(files, "cluster.xyz", steps=1, epsilon_infinity=0))
    assert not run.exists()

    atoms = salty_water()
    still = files / "still.xyz"
    frames = []
    for number in range(5):
        frame = atoms.copy()
        frame.info["time_fs"] = float(number)
        frames.append(frame)
    write(still, frames)
    refused("still.xyz: has no velocities", ["spectrum", "ir", still])
    crystal = files / "moving.xyz"
    frames = [rock_salt() for _ in range(5)]
    write(crystal, frames)
    model = ["--model", files / "m.model"]
    refused(
        "has no velocities, which the current",
        ["spectrum", "ir", crystal, "--timestep", 1, "--temperature", 300, *model],
    )
    refused("does not say its time (time_fs); give --timestep", ["spectrum", "ir", crystal])
    refused("kind must be one of ir, raman, dielectric, cond", ["spectrum", "uv", crystal])
    refused("heat flux needs stresses of atoms", ["spectrum", "heat", crystal])
    frames = []
    for number in (0, 1, 2, 4):
        frame = atoms.copy()
        frame.info["time_fs"] = float(number)
        frame.set_momenta(np.ones((len(atoms), 3)))
        frames.append(frame)
    write(still, frames)
    refused("time steps are not even: frame 2 is at 2 fs", ["spectrum", "ir", still])
    for number, frame in enumerate(frames):
        frame.info["time_fs"] = 0.5 * number
    write(still, frames)
    refused("the run is too short: 0.001 ps", ["spectrum", "ir", still, *model])
    refused(
        "a dielectric constant needs a structure that is periodic",
        ["spectrum", "dielectric", still, *model],
    )
    torch.save(random_model(LongRangeOptions(induced="none")), files / "q.model")
    refused(
        "raman: the model has no induced dipoles",
        ["spectrum", "raman", still, "--model", files / "q.model"],
    )


SPOILT = {
    "degrees": (dict(degrees_of_freedom="x"), [], "degrees_of_freedom must be a whole number"),
    "time": (dict(time_fs="a"), [], "frame 2: time_fs must be one number, got 'a'"),
    "step": (dict(timestep_fs="abc"), [], "timestep_fs must be one number, got 'abc'"),
    "negative": (dict(timestep_fs=-1.0), [], "timestep_fs must be a number above 0, got -1"),
    "charge": ({}, ["--total_charge", "3"], "--total_charge: the frames of"),
    "rule": ({}, ["--sum_rule"], "have a written dipole, which is used as it is"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_frames_say_is_checked(tmp_path, capsys, name):
    """And options that would do nothing, since the frames have what is needed."""
    changes, more, message = SPOILT[name]
    frames = []
    for number in range(20):
        atoms = salty_water()
        atoms.set_momenta(np.random.default_rng(number).normal(size=(8, 3)))
        atoms.info["time_fs"] = 0.5 * number
        atoms.calc = SinglePointCalculator(atoms, dipole=np.array([0.1 * number, 0.0, 0.0]))
        if number == 2 or "time_fs" not in changes:
            atoms.info.update(changes)
        frames.append(atoms)
    write(tmp_path / "run.xyz", frames)
    with pytest.raises(SystemExit) as stopped:
        main(["spectrum", "ir", str(tmp_path / "run.xyz"), "--resolution", "2000", *more])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1 and message in error


@pytest.mark.parametrize("cut", [False, True])
def test_written_dipoles_of_molecules_that_the_cell_cuts_are_refused(tmp_path, capsys, cut):
    """A molecule across the boundary has a charge times a lattice vector too much in it."""
    frames = []
    for number in range(200):
        atoms = molecule("H2O")
        atoms.set_cell([6.0, 6.0, 20.0])
        atoms.pbc = (True, True, False)
        atoms.positions += [0.0, 0.1, 5.0]
        atoms.positions[2, 1] += 0.01 * np.sin(0.5 * number)
        if cut:
            atoms.positions[1, 1] += 6.0
        atoms.set_momenta(np.random.default_rng(number).normal(size=(3, 3)))
        atoms.info["time_fs"] = 0.5 * number
        dipole = np.array([0.0, np.sin(0.5 * number), 0.0])
        atoms.calc = SinglePointCalculator(atoms, dipole=dipole)
        frames.append(atoms)
    write(tmp_path / "run.xyz", frames)
    command = ["spectrum", "ir", str(tmp_path / "run.xyz"), "--resolution", "800"]
    if not cut:
        main(command)
        return
    with pytest.raises(SystemExit) as stopped:
        main(command)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1 and "molecules of the slab are cut by the cell" in error
