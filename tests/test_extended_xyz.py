"""Labels are added to extended XYZ files as text; all else stays as it was written."""

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from mace_polmp.errors import InputError
from mace_polmp.extended_xyz import check_unchanged, read_text, write_text

ROWS = "O 0.00000000123 0.0 0.119262\nH 0.0 0.763239 -0.477047\nH 0.0 -0.763239 -0.477047\n"
COMMENTS = {
    "plain": "a molecule of water",
    "empty": "",
    "quoted": 'Properties=species:S:1:pos:R:3 note="dipole=3 x" REF_energy=-1.23456789012345',
    "spaced": "Properties=species:S:1:pos:R:3 REF_dipole = [1.0, 2.0, 3.0] weight=2",
    "nested": 'Properties=species:S:1:pos:R:3 tensor=[[1, 2], [3, 4]] REF_dipole={1 2 3} s="é"',
}


def labelled(tmp_path, text, change):
    """The file before and after, as frames and as text."""
    path, after = tmp_path / "in.xyz", tmp_path / "out.xyz"
    path.write_text(text, encoding="utf-8")
    frames = read(path, ":")
    texts = read_text(path, frames)
    for entry in texts:
        change(entry)
    write_text(after, texts)
    return frames, read(after, ":"), after.read_text(encoding="utf-8")


@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
def test_a_value_is_added_or_replaced_and_nothing_else(tmp_path, comment):
    def change(text):
        text.set_info("REF_dipole", [0.1, -0.2, 0.3])
        text.set_info("label_origin", "dipole: GFN2-xTB (tblite 0.8.0)")

    before, after, text = labelled(tmp_path, f"3\n{comment}\n{ROWS}" * 2, change)
    assert len(after) == 2 and ROWS in text
    for one, two in zip(before, after, strict=True):
        assert two.info["REF_dipole"].tolist() == [0.1, -0.2, 0.3]
        assert two.info["label_origin"] == "dipole: GFN2-xTB (tblite 0.8.0)"
        check_unchanged(one, two, {"REF_dipole", "label_origin"}, "frame")


@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
def test_a_column_is_added(tmp_path, comment):
    values = [-0.5, 0.25, 0.25]
    before, after, text = labelled(
        tmp_path,
        f"3\n{comment}\n{ROWS}",
        lambda t: t.set_columns("REF_charges", np.array(values)[:, None]),
    )
    assert after[0].arrays["REF_charges"].tolist() == values
    check_unchanged(before[0], after[0], {"REF_charges"}, "frame")
    assert "0.00000000123" in text


def test_a_column_is_replaced(tmp_path):
    atoms = molecule("H2O")
    atoms.arrays["REF_charges"] = np.array([1.0, 2.0, 3.0])
    atoms.arrays["REF_forces"] = np.arange(9.0).reshape(3, 3)
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    text = (tmp_path / "a.xyz").read_text()
    _, (after,), _ = labelled(
        tmp_path, text, lambda t: t.set_columns("REF_charges", np.array([[4.0], [5.0], [6.0]]))
    )
    assert after.arrays["REF_charges"].tolist() == [4, 5, 6]
    assert after.arrays["REF_forces"].tolist() == atoms.arrays["REF_forces"].tolist()


def test_a_frame_that_would_change_is_refused():
    before, after = molecule("H2O"), molecule("H2O")
    after.info["REF_energy"] = 1.0
    with pytest.raises(
        InputError, match="frame 3: a label cannot be added without changing 'REF_e"
    ):
        check_unchanged(before, after, {"REF_dipole"}, "frame 3")
    after = before.copy()
    after.positions[0, 0] += 1e-8
    with pytest.raises(InputError, match="'positions'"):
        check_unchanged(before, after, set(), "frame")
