"""Messages and names in files that pages quote are those of the package."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

FAQ = ROOT / "docs" / "faq.md"
FORMATS = ROOT / "docs" / "reference" / "formats.md"
# Names in the tables of FORMATS that the code makes of parts.
PARTS = {
    "config_energy_weight",
    "config_dipole_weight",
    "dipole_x",
    "current_x",
    "polarizability_xx",
    "charge_O",
    "field_V_per_A_x",
}


def texts(node: ast.AST) -> str:
    """The literal text of an expression, with … where something is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(texts(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    return ""


def messages() -> str:
    """All texts in the code of the package, each on a line."""
    found = []
    for path in (ROOT / "mace_polmp").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [texts(node) for node in ast.walk(tree)]
    return "\n".join(text.replace("\n", " ") for text in found if text)


def quoted() -> list[str]:
    """What stands in `code` at the beginning of an entry of a definition list."""
    text = FAQ.read_text(encoding="utf-8")
    terms = re.findall(r"^(`.*)\n: ", text, re.M)
    return [code for term in terms for code in re.findall(r"`([^`]+)`", term)]


def test_messages_that_are_quoted_exist():
    known = messages().replace("MultipoleMACE", "…")
    assert len(quoted()) > 50
    for message in quoted():
        for part in re.split(r"…", message.replace("MultipoleMACE", "…")):
            part = part.strip(" ();:,.'")
            assert part in known, f"no message has {part!r} (of {message!r})"


def test_names_in_files_exist():
    """Of the first column of tables, and of the columns of tables that commands write."""
    known = messages()
    rows = re.findall(r"^\| (.*?) \|(.*)\|$", FORMATS.read_text(encoding="utf-8"), re.M)
    names = [name for first, _ in rows for name in re.findall(r"`([^`]+)`", first)]
    names += [name for _, rest in rows for name in re.findall(r"`(\w+_(?:cm-1|eA|A)[^`]*)`", rest)]
    assert len(names) > 40
    for name in set(names) - PARTS:
        parts = [part for part in re.split(r"NAME|SEED|N\b|…", name) if len(part) > 1]
        assert all(part in known for part in parts), f"nothing writes or reads {name}"


def test_versions_of_formats_are_those_of_the_package():
    from mace_polmp.modules.model import FORMAT_VERSION
    from mace_polmp.training.checkpoints import VERSION

    text = FORMATS.read_text(encoding="utf-8")
    assert f"writes format version {FORMAT_VERSION}." in text
    assert f"checkpoint version {VERSION}." in text


def test_the_page_on_installing_lists_every_extra():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w-]+)` \|", text, re.M))
    assert listed == set(settings["project"]["optional-dependencies"])
