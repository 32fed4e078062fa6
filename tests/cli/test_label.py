"""`mace_polmp label`: what is labelled, what is kept, what the file says of it."""

import importlib.util

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write

from mace_polmp.cli.main import main
from mace_polmp.cli.run_train import main as run_train
from mace_polmp.extended_xyz import check_unchanged
from tests.cli.runs import flags, log_of, open_frames, write_data
from tests.helpers import rattled

pytestmark = pytest.mark.usefixtures("clean_state")
needs_tblite = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tblite", "cffi")), reason="no tblite"
)


def waters(count=4):
    frames = [rattled(molecule("H2O"), seed, 0.05) for seed in range(count)]
    for number, atoms in enumerate(frames):
        atoms.info.update(REF_energy=-1.23456789012345 * number, note="dipole = 3")
        atoms.arrays["REF_forces"] = np.arange(9.0).reshape(3, 3) / 7.0
    return frames


def label(capsys, folder, frames, *more, code=0):
    """What is printed, and the frames that were written."""
    path = write_data(folder, frames, "in.xyz") if frames is not None else folder / "in.xyz"
    (folder / "out.xyz").unlink(missing_ok=True)
    status = 0
    try:
        main(["label", str(path), "--output", str(folder / "out.xyz"), "--jobs", "1", *more])
    except SystemExit as stopped:
        status = stopped.code
    assert status == code
    out = folder / "out.xyz"
    said = capsys.readouterr()
    return said.out + said.err, read(out, ":") if out.exists() else None


@needs_tblite
def test_only_what_lacks_a_label_gets_one(tmp_path, capsys):
    frames = waters()
    frames[1].info["REF_dipole"] = np.array([0.1, 0.2, 0.3])
    text, written = label(capsys, tmp_path, frames, "--quantities", "dipole", "charges")
    assert "dipole ('REF_dipole'): 3 from GFN2-xTB (tblite" in text and "; 1 kept" in text
    added = {"REF_dipole", "REF_charges", "label_origin"}
    for number, (before, after) in enumerate(
        zip(read(tmp_path / "in.xyz", ":"), written, strict=True)
    ):
        check_unchanged(before, after, added, "frame")
        assert after.arrays["REF_charges"][0] < -0.4
        origin = after.info["label_origin"]
        assert "charges: GFN2-xTB (tblite" in origin
        assert origin.startswith("dipole: input file" if number == 1 else "dipole: GFN2-xTB")
        assert "config_dipole_weight" not in after.info
        if number != 1:
            towards = after.positions[1:].mean(0) - after.positions[0]
            assert after.info["REF_dipole"] @ towards > 0.2
    assert written[1].info["REF_dipole"].tolist() == [0.1, 0.2, 0.3]
    assert not list(tmp_path.glob("out.xyz.*"))


@needs_tblite
def test_weights_are_those_of_borrowed_labels(tmp_path, capsys):
    frames = waters(2)
    frames[1].info["REF_dipole"] = np.array([0.1, 0.2, 0.3])
    _, written = label(capsys, tmp_path, frames, "--weight", "0.1")
    assert [atoms.info.get("config_dipole_weight") for atoms in written] == [0.1, None]


@needs_tblite
def test_overwriting_is_asked_for_and_said(tmp_path, capsys):
    frames = waters(2)
    frames[1].info["REF_dipole"] = np.array([0.1, 0.2, 0.3])
    text, written = label(capsys, tmp_path, frames, "--overwrite")
    assert "1 of them in place of others; 0 kept" in text
    assert np.linalg.norm(written[1].info["REF_dipole"]) == pytest.approx(0.47, abs=0.05)
    assert "GFN2" in written[1].info["label_origin"]


@needs_tblite
def test_a_second_run_keeps_what_the_first_wrote(tmp_path, capsys):
    label(capsys, tmp_path, waters(2))
    first = (tmp_path / "out.xyz").read_text()
    (tmp_path / "in.xyz").write_text(first)
    text, _ = label(capsys, tmp_path, None, "--method", "gfn1")
    assert (tmp_path / "out.xyz").read_text() == first
    assert "0 from GFN1" in text and "against" not in text  # borrowed ones are no truth


@needs_tblite
def test_it_says_how_the_method_agrees_with_true_labels(tmp_path, capsys):
    """Labels that are the method's own, divided by 1.2."""
    _, frames = label(capsys, tmp_path, waters(4))
    for atoms in frames:
        atoms.info["REF_dipole"] = atoms.info["REF_dipole"] / 1.2
        del atoms.info["label_origin"]
    text, _ = label(capsys, tmp_path, frames)
    assert "against the dipoles of 4 structures in the file: GFN2-xTB" in text
    assert "slope 1.20" in text


@needs_tblite
def test_what_cannot_be_labelled_is_named(tmp_path, capsys):
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    charged = molecule("H2O")
    charged.info["total_charge"] = 0.5
    frames = [molecule("H2O"), crystal, charged, crystal]
    text, written = label(capsys, tmp_path, frames)
    assert "not labelled (frames 1, 3): is periodic, and dipole are labels of open" in text
    assert "not labelled (frame 2): has a total charge of 0.5 e" in text
    assert ["REF_dipole" in atoms.info for atoms in written] == [True, False, False, False]


@needs_tblite
def test_what_does_not_converge_is_left_as_it_is(tmp_path, capsys):
    frames = waters(2)
    frames[1].info["total_charge"] = 90
    text, written = label(capsys, tmp_path, frames)
    assert "not labelled (frame 1): GFN2-xTB has no such state" in text
    assert "REF_dipole" in written[0].info
    check_unchanged(read(tmp_path / "in.xyz", 1), written[1], set(), "frame")


@needs_tblite
def test_where_nothing_can_be_labelled_nothing_is_written(tmp_path, capsys):
    text, written = label(capsys, tmp_path, [bulk("NaCl", "rocksalt", a=5.64)], code=1)
    assert "no structure could be labelled; nothing is written" in text and written is None
    assert [path.name for path in tmp_path.iterdir()] == ["in.xyz"]


@needs_tblite
def test_charges_of_ions(tmp_path, capsys):
    ion = molecule("OH")
    text, (written,) = label(
        capsys, tmp_path, [ion], "--quantities", "charges", "--total_charge", "-1"
    )
    assert written.arrays["REF_charges"].sum() == pytest.approx(-1.0, abs=1e-6)
    assert written.info["total_charge"] == -1
    text, (written,) = label(capsys, tmp_path, [ion], "--quantities", "charges")
    assert "1 structures say no total charge" in text and "unpaired electrons (frame 0)" in text


@needs_tblite
def test_born_charges_are_nine_columns(tmp_path, capsys):
    frames = [molecule("H2O"), molecule("CH3OH")]
    more = ("--quantities", "dipole", "born_charges", "--weight", "0.5")
    text, plain = label(capsys, tmp_path, frames, *more)
    assert (
        "--energy_weight 40 --forces_weight 1 --dipole_weight 100 --born_charges_weight 10" in text
    )
    _, scaled = label(capsys, tmp_path, frames, *more, "--scale", "0.9")
    for one, other in zip(plain, scaled, strict=True):
        born = one.arrays["REF_born_charges"]
        assert born.shape == (len(one), 9)
        np.testing.assert_allclose(born.sum(0), 0.0, atol=1e-3)
        np.testing.assert_allclose(other.arrays["REF_born_charges"], 0.9 * born, atol=1e-7)
        dipoles = one.info["REF_dipole"], other.info["REF_dipole"]
        np.testing.assert_allclose(dipoles[1], 0.9 * dipoles[0], atol=1e-7)
        assert "born_charges: GFN2-xTB" in other.info["label_origin"]
        assert "x 0.9" in other.info["label_origin"]
        assert other.info["config_born_charges_weight"] == 0.5


@needs_tblite
def test_a_factor_leaves_the_net_charge_of_an_ion(tmp_path, capsys):
    """Born charges sum to the charge, and the dipole of the moved ion has Q times the way more."""
    far = np.array([3.0, -1.0, 2.0])
    frames = [molecule("OH") for _ in range(2)]
    frames[1].positions += far
    for atoms in frames:
        atoms.info["total_charge"] = -1
    more = ("--quantities", "dipole", "born_charges")
    _, plain = label(capsys, tmp_path, frames, *more)
    _, scaled = label(capsys, tmp_path, frames, *more, "--scale", "0.5")
    for atoms in (*plain, *scaled):
        born = atoms.arrays["REF_born_charges"].reshape(-1, 3, 3)
        # 1e-3 e: differences of forces in two fields.
        np.testing.assert_allclose(born.sum(0), -np.eye(3), atol=1e-3)
    # 1e-3 e Å: how far tblite's iterations converge.
    way = scaled[1].info["REF_dipole"] - scaled[0].info["REF_dipole"]
    np.testing.assert_allclose(way, -far, atol=1e-3)
    about = [atoms.info["REF_dipole"] + atoms.positions.mean(0) for atoms in (plain[0], scaled[0])]
    np.testing.assert_allclose(about[1], 0.5 * about[0], atol=1e-3)


@needs_tblite
def test_another_file_is_not_written_over(tmp_path, capsys):
    label(capsys, tmp_path, [molecule("H2O")])
    before = (tmp_path / "out.xyz").read_text()
    with pytest.raises(SystemExit):
        main(["label", str(tmp_path / "in.xyz"), "--output", str(tmp_path / "out.xyz")])
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "out.xyz").read_text() == before


@needs_tblite
def test_a_label_that_stands_there_twice_is_refused(tmp_path, capsys):
    write_data(tmp_path, [molecule("H2O")], "in.xyz")
    path = tmp_path / "in.xyz"
    text = path.read_text().replace(" pbc=", ' REF_dipole="1 1 1" REF_dipole="8 8 8" pbc=')
    path.write_text(text)
    said, _ = label(capsys, tmp_path, None, "--overwrite", code=1)
    assert "'REF_dipole' stands there twice" in said


@needs_tblite
def test_other_formats_are_written_as_extended_xyz(tmp_path, capsys):
    write(tmp_path / "a.traj", molecule("H2O"))
    main(["label", str(tmp_path / "a.traj"), "--output", str(tmp_path / "a.xyz"), "--jobs", "1"])
    assert np.linalg.norm(read(tmp_path / "a.xyz").info["REF_dipole"]) > 0.4


@needs_tblite
def test_a_training_takes_borrowed_dipoles(tmp_path, capsys):
    """With their weights; at the end it compares with them and gives a verdict."""
    frames = open_frames(12)
    for atoms in frames:
        del atoms.info["REF_dipole"]
    label(capsys, tmp_path, frames, "--weight", "0.5", "--quantities", "dipole", "charges")
    run_train(
        flags(
            tmp_path,
            model="MultipoleMACE",
            train_file=tmp_path / "out.xyz",
            dipole_weight=10,
            multipole_lmax=0,
            induced="none",
        )
    )
    log = log_of(tmp_path)
    assert "RMSE_dipole" in log
    assert "Verdict: charges" in log and "times the labels of 4 structures" in log


def test_without_tblite_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    text, _ = label(capsys, tmp_path, waters(1), code=1)
    assert "pip install 'mace-polmp[label]'" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["--weight", "-1"], "--weight must be a number of 0 or more, got -1"),
        (["--output", "a.traj"], "--output a.traj: must end in .xyz or .extxyz"),
    ],
)
def test_options_without_sense(tmp_path, capsys, more, message):
    text, _ = label(capsys, tmp_path, waters(1), *more, code=1)
    assert message in text
