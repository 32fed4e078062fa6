"""Pictures of the results come from the tables of the results, and pages find those tables."""

import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
PAGE = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import figures

    yield figures
    sys.modules.pop("figures", None)


def test_pictures_are_drawn_from_csv_and_page(figures, tmp_path, monkeypatch):
    """With the machine in the title; a folder without some of the tables is no error."""
    results = tmp_path / "results"
    results.mkdir()
    for name in ("solvers.csv", "machines.json"):
        shutil.copy(BENCHMARKS / "results" / name, results)
    shutil.copy(BENCHMARKS / "RESULTS.md", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures.py", "--results", str(results)])
    figures.main()
    names = {path.name for path in results.iterdir()}
    for name in ("solvers", "accuracy_forces", "accuracy_anchors", "ranks"):
        assert {f"{name}.png", f"{name}.svg"} <= names
    assert "2026-11-21" in (results / "solvers.svg").read_text(encoding="utf-8")
    assert "head.png" not in names


def test_a_table_is_read_as_it_is_printed(figures):
    text = "<!-- table: a -->\n| x | F RMSE |\n| --- | --- |\n| u | 1.5, −2 |\n\n| other |\n"
    (row,) = figures.table_of(text, "a")
    assert row == {"x": "u", "F RMSE": "1.5, −2"}
    assert figures.numbers(row["F RMSE"]) == [1.5, -2.0]
    with pytest.raises(ValueError, match="has no table named b"):
        figures.table_of(text, "b")


def test_only_rows_of_the_same_settings_are_compared(figures):
    """Other settings of a variant, such as no warm-up, stay out of the bars."""
    water = figures._errors_of(figures.table_of(PAGE, "hierarchy"), "water (test)")
    assert set(water) == set(figures.VARIANTS)
    assert figures.numbers(water["uQ"]["F RMSE"]) == [45.9, 46.0]
    chains = figures._errors_of(figures.table_of(PAGE, "hierarchy"), "carbon chains (test)")
    assert figures.numbers(chains["sr"]["F RMSE"]) == [114.0, 127.0]


def test_a_machine_is_noted_beside_the_table(figures, tmp_path):
    figures.note_machine(tmp_path, "head", "this CPU, today")
    figures.note_machine(tmp_path, "slab", "that CPU, today")
    text = (tmp_path / "machines.json").read_text(encoding="utf-8")
    assert "this CPU" in text and "that CPU" in text


def test_pages_include_parts_that_are_there():
    """Each part has a beginning and an end, and the pages show pictures that exist."""
    begins = re.findall(r"<!-- begin: (\w+) -->", PAGE)
    assert begins == re.findall(r"<!-- end: (\w+) -->", PAGE) and len(set(begins)) == len(begins)
    shown = []
    for page in sorted((ROOT / "docs" / "benchmarks").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        shown += re.findall(r"<!-- begin: (\w+) -->", text)
        for picture in re.findall(r"\{figure\} (\S+)", text):
            assert (page.parent / picture).exists(), f"{page.name}: {picture}"
    assert set(shown) == set(begins)
