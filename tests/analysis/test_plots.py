"""Pictures are there as PNG and SVG, say what they show, and label what can be read."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from mace_polmp.analysis import plots

ROOT = Path(__file__).parents[2]


def svg_of(path):
    return ElementTree.parse(path.with_suffix(".svg")).getroot()


def comments(path):
    """Texts of an SVG; matplotlib draws letters and writes the words beside them as comments."""
    return path.with_suffix(".svg").read_text(encoding="utf-8")


def draw(path, **more):
    x = np.linspace(0.0, 10.0, 200)
    lines = {"a": np.exp(-((x - 5.0) ** 2))}
    plots.draw_lines(path, x, lines, ("x / Å", "y / e"), "title of it", **more)


def test_every_picture_is_written_in_both_formats(tmp_path):
    draw(tmp_path / "run_0.1_ir.png")  # a name with dots of its own
    assert (tmp_path / "run_0.1_ir.png").read_bytes().startswith(b"\x89PNG")
    assert svg_of(tmp_path / "run_0.1_ir.png").tag.endswith("svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_0.1_ir.png", "run_0.1_ir.svg"]
    assert "title of it" in comments(tmp_path / "run_0.1_ir.png")


def test_the_same_picture_is_the_same_file(tmp_path):
    """Without dates and random names a picture in a repository changes only with its numbers."""
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png")
    for ending in plots.FORMATS:
        first, second = ((tmp_path / f"{n}.{ending}").read_bytes() for n in "ab")
        assert first == second


def test_sticks_have_their_places_written_above(tmp_path):
    sticks = plots.Sticks(np.array([2.0, 5.0]), np.array([1.0, 3.0]), "intensity / (km/mol)")
    draw(tmp_path / "s.png", sticks=sticks)
    text = comments(tmp_path / "s.png")
    assert "<!-- 5 -->" in text and "<!-- 2 -->" in text and "intensity / (km/mol)" in text


def test_labels_of_sticks_do_not_touch():
    """The larger of two close ones has it, and what is hardly there has none."""
    position = np.array([100.0, 110.0, 500.0, 900.0])
    height = np.array([1.0, 2.0, 0.5, 0.001])
    assert plots.labelled(position, height, apart=50.0) == [1, 2]
    assert plots.labelled(np.empty(0), np.empty(0), 1.0) == []


def test_a_title_names_model_and_data():
    title = plots.heading("Infrared spectrum", "model m.model", "", "run.xyz (H₂O)", "300 K")
    assert title == "Infrared spectrum\nmodel m.model, run.xyz (H₂O), 300 K"
    assert max(map(len, plots.heading("a", *["word " * 9] * 5).splitlines())) <= 72
    assert plots.names(["x/a.model", "b.model", "c.model", "d.model"]) == (
        "a.model, b.model, c.model and 1 more"
    )
    assert plots.typeset("H128NaO64") == "H₁₂₈NaO₆₄"


def test_many_points_are_pixels_in_the_vector_picture(tmp_path):
    """An SVG of a hundred thousand points would be slow to open; its axes stay lines."""
    for name, count in (("few", 50), ("many", 5000)):
        values = np.random.default_rng(0).normal(size=count)
        plots.draw_parity(tmp_path / f"{name}.png", "x / e", {"x": (values, values)}, "title")
    assert "<image" not in (tmp_path / "few.svg").read_text()
    assert "<image" in (tmp_path / "many.svg").read_text()
    assert (tmp_path / "many.svg").stat().st_size < 300_000


@pytest.mark.parametrize("ending", plots.FORMATS)
def test_a_picture_that_fails_leaves_the_old_one(tmp_path, ending):
    """Files appear whole or not at all."""
    path = tmp_path / f"p.{ending}"
    path.write_text("old")
    made, _ = plots.figure()
    made.savefig = lambda *_, **__: (_ for _ in ()).throw(ValueError("stop"))
    with pytest.raises(ValueError, match="stop"):
        plots.save(made, tmp_path / "p.png")
    assert path.read_text() == "old"


def test_nothing_draws_past_the_function_that_saves():
    """One place writes pictures: elsewhere they would lack a format."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("mace_polmp", "scripts", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ".savefig(" in path.read_text(encoding="utf-8")
    ]
    assert found == ["mace_polmp/analysis/plots.py"]
