"""`mace_polmp md` and `mace_polmp spectrum` as a user types them."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase.io import read, write

from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from tests.cli.runs import run_module
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


def test_a_killed_run_goes_on(files):
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
    done = run_module("mace_polmp.cli.main", command, files)
    assert done.returncode == 0, done.stderr
    assert "150 steps, 0.075 ps of H4ClNaO2" in done.stdout
    command[command.index("--output") + 1] = str(files / "whole")
    run_module("mace_polmp.cli.main", command, files)
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
    main(["spectrum", "dielectric", trajectory, *model, "--output", str(files / "eps")])
    out = capsys.readouterr().out
    assert "electronic permittivity" in out and "static dielectric constant" in out
    for name in ("trajectory_raman", "trajectory_ir"):
        table = np.genfromtxt(files / "run" / f"{name}.csv", delimiter=",", skip_header=1)
        assert np.isfinite(table).all() and len(table) > 10
        assert (files / "run" / f"{name}.png").stat().st_size > 10000
    header = (files / "run" / "trajectory_ir.csv").read_text().splitlines()[0]
    assert header == "wavenumber_cm-1,n_alpha_cm-1,cross_section_km/mol_per_cm-1"
    assert table[-1, 0] <= 800  # of the infrared spectrum, the last read
    assert (files / "eps.png").exists()


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
    refused("kind must be one of ir, raman, dielectric", ["spectrum", "uv", crystal])
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
