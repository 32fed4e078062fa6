"""LAMMPS on several processes computes what the ASE calculator does.

MACE_POLMP_RANKS says on how many; 2 unless it is set.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("lammps")
pytest.importorskip("mpi4py.MPI")

from mace_polmp.cli.main import main
from mace_polmp.errors import InputError
from mace_polmp.interfaces.script import split_script, substituted
from tests.helpers import make_calculator, random_model
from tests.interfaces.lammps_cases import CASES

ROOT = Path(__file__).parents[2]
RANKS = int(os.environ.get("MACE_POLMP_RANKS", "2"))
BAR = 1602176.634  # of 1 eV/Å³


def mpi(n, *command, **more):
    program = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no mpiexec")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [program, "-n", str(n), sys.executable, *map(str, command)],
        env=env,
        capture_output=True,
        text=True,
        timeout=1800,
        **more,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lammps")
    run = mpi(RANKS, "-m", "tests.interfaces.lammps_worker", folder, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-4000:]
    return {name: np.load(folder / f"{name}_{RANKS}.npz") for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_calculator_finds(runs, name):
    case, found = CASES[name], runs[name]
    assert found["n_own"].min() >= 0 and found["n_own"].sum() == len(case.atoms())
    pbc = case.atoms().pbc
    atoms = Atoms(found["numbers"], found["positions"], cell=found["cell"], pbc=pbc)
    atoms.info["total_charge"] = case.settings.get("total_charge", 0.0)
    models = [random_model(case.options, seed=seed) for seed in range(case.n_models)]
    calculator = make_calculator(models=models)
    if "external_field" in case.settings:
        calculator.external_field = case.settings["external_field"]
    atoms.calc = calculator
    forces = atoms.get_forces()
    results = calculator.results
    assert float(found["energy"]) == pytest.approx(results["energy"], abs=1e-9 * len(atoms))
    np.testing.assert_allclose(found["forces"], forces, atol=1e-9 * np.abs(forces).max())
    np.testing.assert_allclose(found["charges"], results["charges"], atol=1e-10)
    np.testing.assert_allclose(found["dipoles"], results["atomic_dipoles"], atol=1e-10)
    assert float(found["long_range"]) == pytest.approx(results["long_range_energy"], abs=1e-8)
    if not pbc.any() or case.options.defines_polarization:  # no matter where atoms were wrapped
        np.testing.assert_allclose(found["dipole"], results["dipole"], atol=1e-8)
    if pbc.any():
        pressure = -BAR * atoms.get_stress()
        scale = np.abs(pressure).max()
        np.testing.assert_allclose(found["pressure"], pressure, atol=1e-8 * scale)
    if case.n_models > 1:
        each = np.stack(results["forces_comm"])
        expected = np.linalg.norm(each - each.mean(0), axis=2).max()
        assert float(found["deviation"]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_energy_is_conserved(runs):
    assert abs(float(runs["nve"]["change"])) < 2e-3 * len(CASES["nve"].atoms())


ATOMS = """units {units}
boundary p p p
region box block 0 6 0 6 0 6
create_box 2 box
create_atoms 1 single 1 1 1
create_atoms 2 single {place} {place} {place}
mass 1 {mass}
mass 2 35.45
"""
SCRIPT = (
    ATOMS.format(units="metal", mass=22.99, place=3.0)
    + """pair_style mace_polmp
pair_coeff * * Na Cl
run 0
"""
)


@pytest.mark.parametrize(
    "change, elements, more, message",
    [
        ({"units": "real"}, "Na Cl", {}, "units must be metal"),
        ({}, "Cl Na", {}, "order of LAMMPS' types"),
        ({}, "Na", {}, "2 atom types"),
        ({}, "Na Fe", {}, "does not know Fe"),
        ({}, "Na Xx", {}, "'Xx' is no element"),
        ({}, "Na Cl", {"head": "pt"}, "head must be one of Default"),
        ({}, "Na Cl", {"default_dtype": "float16"}, "default_dtype must be"),
        ({}, "Na Cl", {"external_field": [0, 0, 1]}, "Use boundary f f f, or boundary p p f"),
        ({"place": 1.0}, "Na Cl", {}, "closer than"),
        ({}, "Na Cl", {"total_charge": 1.0}, "without --constrain_charge"),
    ],
)
def test_wrong_input_is_refused(change, elements, more, message):
    from lammps import lammps

    from mace_polmp.interfaces.lammps import attach

    settings = {"units": "metal", "mass": 22.99, "place": 3.0} | change
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(ATOMS.format(**settings))
    with pytest.raises(InputError, match=message):
        attach(lmp, random_model(), elements.split(), **more)
    lmp.close()


@pytest.mark.parametrize(
    "commands, message",
    [
        ("fix hold all setforce 0 0 0", r"fix hold \(setforce\): defined before the model"),
        ("fix move all nve", r"fix move \(nve\)"),
        ("fix keep all store/force", r"fix keep \(store/force\)"),
        ("fix polmp all ave/time 1 1 1 c_thermo_temp", "attach once"),
    ],
)
def test_fixes_before_the_model_are_refused(commands, message):
    from lammps import lammps

    from mace_polmp.interfaces.lammps import attach

    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(ATOMS.format(units="metal", mass=22.99, place=3.0) + commands)
    with pytest.raises(InputError, match=message):
        attach(lmp, random_model(), ["Na", "Cl"])
    lmp.close()


def test_image_flags():
    from mace_polmp.interfaces.checks import decoded

    small = np.array([(3 + 512) | (-2 + 512) << 10 | 512 << 20], dtype=np.int32)
    assert decoded(small).tolist() == [[3, -2, 0]]
    half = 1 << 20
    big = np.array([(3 + half) | (-2 + half) << 21 | half << 42], dtype=np.int64)
    assert decoded(big).tolist() == [[3, -2, 0]]


def test_no_atoms_are_refused():
    from lammps import lammps

    from mace_polmp.interfaces.lammps import attach

    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.command("units metal")
    with pytest.raises(InputError, match="has no atoms yet"):
        attach(lmp, random_model(), ["Na", "Cl"])
    lmp.close()


@pytest.mark.slow
def test_a_script_runs_with_its_loops(tmp_path):
    import torch

    torch.save(random_model(), tmp_path / "m.model")
    text = (
        SCRIPT
        + "fix move all nve\nvariable i loop 2\nlabel again\nrun 2\nnext i\njump SELF again\n"
    )
    (tmp_path / "in").write_text(text)
    command = ("-m", "mace_polmp.cli.main", "lammps", "in", "--model", "m.model")
    run = mpi(2, *command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "log.lammps").read_text().count("Loop time") == 3


def test_a_script_that_loses_the_model_fails(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save(random_model(), "m.model")
    Path("in").write_text(SCRIPT + "unfix polmp\nrun 1\n")
    with pytest.raises(SystemExit) as stopped:
        main(["lammps", "in", "--model", "m.model"])
    assert stopped.value.code == 1 and "fix polmp was removed" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_on_one_process_ends_all(tmp_path):
    import torch

    torch.save(random_model(), tmp_path / "m.model")
    (tmp_path / "in").write_text(SCRIPT + "nonsense 1 2\n")
    command = ("-m", "mace_polmp.cli.main", "lammps", "in", "--model", "m.model")
    assert mpi(2, *command, cwd=tmp_path).returncode != 0


@pytest.mark.slow
def test_restart_files(tmp_path, monkeypatch):
    """A script that begins with read_restart goes on where the first one ended."""
    import torch

    torch.save(random_model(), tmp_path / "m.model")
    print_it = "variable e equal etotal\nprint '$(v_e:%.15g)' file {}\n"
    move = "fix move all nve\ntimestep 0.0005\n"
    (tmp_path / "in.1").write_text(
        SCRIPT
        + "velocity all create 300 7 loop geom\n"
        + move
        + "run 10\nwrite_restart half\nrun 10\n"
        + print_it.format("whole")
    )
    (tmp_path / "in.2").write_text(
        "read_restart half\npair_style mace_polmp\npair_coeff * * Na Cl\n"
        + "compute own all pe/atom\ncompute polmp all property/atom d_polmp_energy\n"
        + "compute sum all reduce sum c_own c_polmp\n"
        + "thermo_style custom step temp pe etotal c_sum[1] c_sum[2]\nthermo 10\n"
        + move
        + "run 10\n"
        + print_it.format("rest")
        + "print '$(pe:%.12g) $(c_sum[1]:%.12g) $(c_sum[2]:%.12g)' file sums\n"
    )
    command = ("lammps", "--model", "m.model", "--energies")
    run = mpi(2, "-m", "mace_polmp.cli.main", *command, "in.1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    monkeypatch.chdir(tmp_path)
    main([*command, "in.2"])
    whole, rest = (float((tmp_path / name).read_text()) for name in ("whole", "rest"))
    assert rest == pytest.approx(whole, abs=1e-9)
    energy, *sums = map(float, (tmp_path / "sums").read_text().split())
    assert sums == pytest.approx([energy, energy], abs=1e-9)


def test_included_files_and_variables(tmp_path, monkeypatch):
    """The set-up in a file of its own, elements in a variable, data that are written and read."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save(random_model(), tmp_path / "m.model")
    setup, pair = SCRIPT.split("pair_style")
    pair = "pair_style" + pair.replace("Na Cl", "${el}").replace("run 0\n", "")
    (tmp_path / "setup").write_text(setup + pair)
    (tmp_path / "in").write_text(
        "include setup\nfix move all nve\nrun 1\nwrite_data data nocoeff nofix\n"
        "print $(pe:%.9f) file one\n"
    )
    (tmp_path / "in.2").write_text(
        "units metal\nread_data data\n" + pair + "run 0\nprint $(pe:%.9f) file two\n"
    )
    for script in ("in", "in.2"):
        options = ["--var", "el", "Na Cl", "--log", "none"]
        main(["lammps", "--model", "m.model", *options, script])
    one, two = (float((tmp_path / name).read_text()) for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-6)


def test_included_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pair").write_text("pair_style mace_polmp\npair_coeff * * H O\n")
    Path("loop").write_text("label a\nrun 1\njump SELF a\n")
    found = split_script("units metal\ninclude pair\ninclude loop\n", "in")
    assert found.elements == ("H", "O") and found.after == "include loop\n"
    Path("runs").write_text("label b\nrun 0\njump SELF b\n")
    found = split_script("units metal\ninclude runs\nrun 5\n", "in")  # attached before it
    assert found.before == "units metal\n" and found.after == "include runs\nrun 5\n"
    with pytest.raises(InputError, match="a run before pair_coeff"):
        split_script("include runs\ninclude pair\nrun 5\n", "in")
    Path("runs").write_text("label b\ncompute s all stress/atom NULL\njump SELF b\n")
    with pytest.raises(InputError, match="runs: line 2: compute stress/atom"):
        split_script("include pair\ninclude runs\nrun 5\n", "in")
    Path("kspace").write_text("\nkspace_style ewald 1e-4\n")
    with pytest.raises(InputError, match="kspace: line 2: kspace_style ewald does not work"):
        split_script("include pair\ninclude kspace\nrun 1\n", "in")
    Path("self").write_text("include self\n")
    with pytest.raises(InputError, match="include each other"):
        split_script("include self\nrun 1\n", "in")


def test_variables_in_the_names_of_elements():
    values = {"el": "H O", "x": "Na"}
    assert substituted(["${el}", "Cl", "$x"], values.get) == ["H", "O", "Cl", "Na"]
    with pytest.raises(InputError, match="variable nothing is not defined"):
        substituted(["${nothing}"], values.get)


def test_the_place_of_the_model_in_a_script():
    found = split_script(
        "units metal\npair_style mace_polmp\npair_coeff * * H O # types\nrun 1", "in"
    )
    assert found.elements == ("H", "O")
    assert found.before == "units metal\n" and found.after == "run 1\n"
    assert split_script("units metal\nrun 5", "in").after == "run 5\n"
    joined = split_script("pair_style mace_polmp\npair_coeff * * &\n H O\nrun 1", "in")
    assert joined.elements == ("H", "O")
    for text, message in (
        ("pair_style lj/cut 5\nrun 1", "line 1 has pair_style lj/cut"),
        ("pair_style mace_polmp\nrun 1", "needs one line"),
        ("units metal", "has no run"),
        ("pair_style mace_polmp\n" * 2 + "pair_coeff * * H\nrun 1", "a second pair_style"),
        ("neigh_modify every 10\nrun 1", "neigh_modify every does not work"),
        ("run_style respa 2 2\nrun 1", "run_style respa does not work"),
        ("compute s all stress/atom NULL\nrun 1", "compute stress/atom does not see the model"),
        ("compute e all pe/atom\nrun 1", "run with --energies"),
        ("fix g all gcmc 1 1 1\nrun 1", "fix gcmc takes energies from the pair style"),
        (
            "label a\npair_style mace_polmp\npair_coeff * * H\nrun 1\njump SELF a",
            "jumps to label a, before pair_coeff",
        ),
    ):
        with pytest.raises(InputError, match=message):
            split_script(text, "in")
