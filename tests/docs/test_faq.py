"""The messages that the page on troubleshooting quotes are those of the package."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT

FAQ = ROOT / "docs" / "faq.md"


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
