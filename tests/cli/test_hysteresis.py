"""`mace_polmp md --field_ramp` and `mace_polmp spectrum hysteresis` as a user types them."""

import re

import numpy as np
import pytest
import torch
from ase.io import read, write

from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from tests.helpers import random_model, rock_salt

BOND = LongRangeOptions(
    charge_readout="bond", formal_charges="Na:1,Cl:-1", induced="dipole", epsilon_infinity=2.3
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a run of two and a half periods of 20 fs."""
    folder = tmp_path_factory.mktemp("loop")
    torch.save(random_model(BOND), folder / "m.model")
    write(folder / "crystal.xyz", rock_salt())
    main([*command(folder), "--field_ramp", "sine", "0.02", "--output", str(folder / "run")])
    return folder


def command(folder, steps=100):
    return [
        *("md", "--model", str(folder / "m.model"), "--structure", str(folder / "crystal.xyz")),
        *("--steps", str(steps), "--every", "1", "--temperature", "50", "--timestep", "0.5"),
        *("--field", "0", "0.1", "0.1"),
    ]


def loop_of(folder):
    return np.genfromtxt(folder / "run" / "trajectory_hysteresis.csv", delimiter=",", names=True)


def spectrum(folder, *more):
    main(["spectrum", "hysteresis", str(folder / "run" / "trajectory.xyz"), *more])


def test_the_area_of_the_loop_is_the_work_of_the_field(ran, capsys):
    """∮ F dP times the volume is the work of a period, with physical charges and fields."""
    spectrum(ran, "--centre")
    out = capsys.readouterr().out
    assert "periods" not in out and "period 2 of 2, 0.02 ps each" in out
    assert "up to 1.414e+04 kV/cm" in out  # 0.1 √2 V/Å
    assert "note: one period has no error bar" in out
    table = np.genfromtxt(ran / "run" / "md.csv", delimiter=",", names=True)
    work = table["work_eV"][80] - table["work_eV"][40]
    field, polarization = loop_of(ran)["field_VA"], loop_of(ran)["polarization_eA2"]
    assert field.max() == pytest.approx(0.1 * np.sqrt(2.0), rel=1e-3)
    # The polarization of a crystal in motion is another one after a period. The work has
    # that change, and a closed loop does not: at zero field it costs nothing.
    closed = np.append(field, 0.0), np.append(polarization, polarization[0])
    area = float((0.5 * (closed[0][1:] + closed[0][:-1]) * np.diff(closed[1])).sum())
    volume = rock_salt().get_volume()
    step = 0.1 * np.sqrt(2) * 2 * np.pi / 40  # of the field, between frames
    jump = abs(table["dipole_z"][80] - table["dipole_z"][40]) * step
    assert volume * area == pytest.approx(work, abs=1e-9 + 2 * jump)
    said = float(out.split("area (heat per period)")[1].split("|")[2].split()[0])
    assert said == pytest.approx(1000 * volume * area, rel=0.01)
    for ending in ("png", "svg"):
        assert (ran / "run" / f"trajectory_hysteresis.{ending}").stat().st_size > 10000


def test_another_permittivity_changes_charges_and_field(ran, tmp_path, capsys):
    """By its root and one over it; formal charges stay whole, and frames with them forbid it."""
    path = str(ran / "run" / "trajectory.xyz")
    assert "formal charges, which stay whole" in refused(capsys, path, "--epsilon_infinity", "9.2")
    frames = read(path, ":")
    for frame in frames:
        assert frame.info["formal_charges"]
        frame.info["formal_charges"] = False
    write(tmp_path / "run.xyz", frames)
    tables = []
    for name, more in (("before", []), ("after", ["--epsilon_infinity", "9.2"])):
        base = str(tmp_path / name)
        main(["spectrum", "hysteresis", str(tmp_path / "run.xyz"), "--output", base, *more])
        tables.append(np.genfromtxt(f"{base}.csv", delimiter=",", names=True))
    before, after = tables
    np.testing.assert_allclose(after["field_VA"], 0.5 * before["field_VA"], rtol=1e-9)
    np.testing.assert_allclose(after["polarization_eA2"], 2.0 * before["polarization_eA2"])
    areas = re.findall(r"\| +(\S+) meV per cell", capsys.readouterr().out)
    assert len(areas) == 2 and len({*areas}) == 1


def test_frames_of_other_programs_need_a_period(ran, tmp_path, capsys):
    frames = read(ran / "run" / "trajectory.xyz", ":")
    for frame in frames:
        del frame.info["field_period_fs"]
    write(tmp_path / "run.xyz", frames)
    path = str(tmp_path / "run.xyz")
    spectrum(ran, "--output", str(tmp_path / "known"))
    main(["spectrum", "hysteresis", path, "--period", "0.02", "--output", str(tmp_path / "told")])
    assert (tmp_path / "known.csv").read_text() == (tmp_path / "told.csv").read_text()
    assert "do not say the period of a field" in refused(capsys, path)
    assert "--period must be a positive number of ps" in refused(capsys, path, "--period", "0")
    known = str(ran / "run" / "trajectory.xyz")
    assert "say 0.02 ps (field_period_fs); leave the" in refused(capsys, known, "--period", "1")


def refused(capsys, path, *more):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["spectrum", "hysteresis", path, *more])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 1 and len(error) == 1
    return error[0]


CHANGES = {
    "field": (lambda f: f.info.pop("external_field"), "frames do not say the field"),
    "dipole": (lambda f: f.calc.results.pop("dipole"), "frames have no 'dipole'; write it"),
    "open": (lambda f: f.set_pbc(False), "a polarization needs a volume"),
    "readout": (lambda f: f.info.update(defines_polarization=False), "--charge_readout bond"),
    "earlier": (lambda f: f.info.pop("defines_polarization"), "--charge_readout bond"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_frames_without_a_polarization_are_refused(ran, tmp_path, capsys, name):
    frames = read(ran / "run" / "trajectory.xyz", ":")
    change, message = CHANGES[name]
    for frame in frames:
        change(frame)
    write(tmp_path / "run.xyz", frames)
    assert message in refused(capsys, str(tmp_path / "run.xyz"))


def test_ramps_that_cannot_be_are_refused(ran, tmp_path, capsys):
    def said(*more):
        with pytest.raises(SystemExit) as stop:
            main([*command(ran), "--output", str(tmp_path / "out"), *more])
        assert stop.value.code == 1 and not (tmp_path / "out").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "must be triangle or sine, got 'square'" in said("--field_ramp", "square", "1")
    assert "must be a positive number of ps, got x" in said("--field_ramp", "sine", "x")
    assert "must be a positive number of ps, got 0" in said("--field_ramp", "sine", "0")
    both = said("--field_ramp", "sine", "1", "--field_wavenumber", "100")
    assert "--field_ramp does not go together with --field_wavenumber" in both
    zero = said("--field_ramp", "sine", "1", "--field", "0", "0", "0")
    assert "--field_ramp: the amplitude" in zero
