"""The texts of the documentation as tests read them: the README, docs/ and the examples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_MADE = ("flags.md", "commands.md", "labels.md")  # in docs/reference, by the build
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        path: of the page.
        line: where its text begins.
        text: without the fences.
    """

    path: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def written() -> list[Path]:
    """All pages that someone wrote; those that the build makes are not among them."""
    docs = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "captured" not in p.parts]
    made = {ROOT / "docs" / "reference" / name for name in _MADE}
    texts = [*ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md"), *docs]
    return [path for path in texts if path not in made]


def followed() -> list[Path]:
    """The pages whose Python examples run as they stand, for readers who copy them."""
    folders = [ROOT / "docs" / name for name in ("start", "guide")]
    return [README, *(path for folder in folders for path in sorted(folder.glob("*.md")))]


def blocks(path: Path, *languages: str) -> list[Block]:
    """The blocks of code in one of the languages on a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, text[: found.start("text")].count("\n") + 1, found["text"])
        for found in _FENCE.finditer(text)
        if found["language"] in languages
    ]
