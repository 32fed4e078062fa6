"""Pages of the tutorials: scripts with `# %%` cells become MyST pages.

Text and code come from examples/tutorials/NAME.py. Output and pictures come from
docs/tutorials/captured, so that the build runs nothing. This remakes them:

    python docs/_ext/tutorials.py [NAME ...]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
SCRIPTS = DOCS.parent / "examples" / "tutorials"
PAGES = DOCS / "tutorials"
CAPTURED = PAGES / "captured"
RUNS = DOCS.parent / "tutorials"  # what runs leave behind, PNG files among it
LARGEST_PICTURE = 100_000  # bytes
_PICTURE = re.compile(r"^\[(\S+)\.png, (\S+)\.svg\]$")
# A word of a command, or a flag with its value, which stay on one line.
_WORD = re.compile(r"--\w+(?: (?!-)(?:'[^']*'|\S+))?|'[^']*'|\S+")
_WIDTH = 80  # of output on a page
_CODE = "code"
_TEXT = "markdown"


@dataclass(frozen=True)
class Cell:
    """A cell of a script.

    Attributes:
        kind: code or markdown.
        text: without the marks.
        line: of the script, where it begins.
    """

    kind: str
    text: str
    line: int


def names() -> list[str]:
    """The tutorials: scripts that begin with a text cell."""
    found = sorted(SCRIPTS.glob("*.py"))
    return [path.stem for path in found if path.read_text("utf-8").startswith("# %% [markdown]")]


def cells_of(script: Path) -> list[Cell]:
    """The cells of a script.

    Raises:
        ValueError: a text cell with a line that is no comment.
    """
    cells: list[Cell] = []
    parts = re.split(r"^(# %%.*)$", script.read_text("utf-8"), flags=re.M)
    line = 1 + parts[0].count("\n")
    for mark, body in zip(parts[1::2], parts[2::2], strict=True):
        if "[markdown]" in mark:
            lines = body.strip("\n").splitlines()
            if any(each and not each.startswith("#") for each in lines):
                raise ValueError(f"{script}:{line}: a line of a text cell is no comment")
            text = "\n".join(re.sub(r"^# ?", "", each) for each in lines)
            cells.append(Cell(_TEXT, text, line))
        else:
            cells.append(Cell(_CODE, body.strip("\n"), line))
        line += body.count("\n")
    return cells


def code_digest(cells: list[Cell]) -> str:
    """What the code is, whatever its layout and comments."""
    code = "\n".join(cell.text for cell in cells if cell.kind == _CODE)
    return hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:16]


def captured(name: str) -> dict[str, Any]:
    """What a run of a tutorial gave: code, minutes, and the output of each code cell."""
    path = CAPTURED / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: run python docs/_ext/tutorials.py {name}")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def page(name: str) -> str:
    """A tutorial as MyST text."""
    made = captured(name)
    outputs = iter(made["outputs"])
    parts = []
    for cell in cells_of(SCRIPTS / f"{name}.py"):
        if cell.kind == _TEXT:
            parts.append(cell.text)
            continue
        if cell.text:
            parts.append(f"```python\n{cell.text}\n```")
        parts += _shown(next(outputs, []))
    title, rest = parts[0].split("\n", 1) if "\n" in parts[0] else (parts[0], "")
    note = (
        f"*This page is the script `examples/tutorials/{name}.py` with its output. The run took "
        f"{made['minutes']:.1f} minutes on one core.*"
    )
    head = f"<!-- Made by docs/_ext/tutorials.py; edit examples/tutorials/{name}.py -->"
    return "\n\n".join([head, f"(tutorial-{name})=\n{title}", note, rest.strip(), *parts[1:], ""])


def _shown(lines: list[str]) -> list[str]:
    """Output as blocks of text and pictures."""
    parts: list[str] = []
    text: list[str] = []

    def flush() -> None:
        if any(line.strip() for line in text):
            shown = [part for line in text for part in _wrapped(line)]
            parts.append("```text\n" + "\n".join(shown).strip("\n") + "\n```")
        text.clear()

    for line in lines:
        found = _PICTURE.match(line)
        if found:
            flush()
            words = found[1].replace("_", " ")
            parts.append(f"![{words}](captured/{_picture(found[1])})")
        else:
            text.append(line)
    flush()
    return parts


def _wrapped(line: str) -> list[str]:
    """A line that is too wide for a page, on several; commands can be copied all the same."""
    if len(line) <= _WIDTH:
        return [line]
    if line.startswith("$ "):
        rows = [""]
        for word in _WORD.findall(line):
            if rows[-1] and len(rows[-1]) + len(word) + 3 > _WIDTH:
                rows.append("   ")
            rows[-1] += f" {word}" if rows[-1] else word
        return [f"{row} \\" for row in rows[:-1]] + rows[-1:]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _picture(name: str) -> str:
    svg = CAPTURED / f"{name}.svg"
    return svg.name if svg.exists() else f"{name}.png"


def write_pages(*_: Any) -> None:
    """Write docs/tutorials/NAME.md for each tutorial; untouched where nothing changed."""
    for name in names():
        path, text = PAGES / f"{name}.md", page(name)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx: make the pages before the sources are listed."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "version": "1"}


def capture(name: str) -> None:
    """Run the cells of a tutorial in this process, and keep what they print and draw."""
    cells = cells_of(SCRIPTS / f"{name}.py")
    sys.path.insert(0, str(SCRIPTS))
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    sys.argv = [f"{name}.py", "--output", str(folder)]
    space: dict[str, Any] = {"__name__": "__main__", "__file__": str(SCRIPTS / f"{name}.py")}
    outputs: list[list[str]] = []
    started = time.time()
    for cell in cells:
        if cell.kind != _CODE:
            continue
        said = io.StringIO()
        code = compile("\n" * cell.line + cell.text, f"{name}.py", "exec")
        with contextlib.redirect_stdout(said):
            exec(code, space)
        outputs.append([line.rstrip() for line in said.getvalue().splitlines()])
    used = os.times()
    spent = used.user + used.system + used.children_user + used.children_system
    _keep_pictures(name, folder, outputs)
    found = {
        "code": code_digest(cells),
        "minutes": round(min(spent, time.time() - started) / 60, 2),
        "outputs": outputs,
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (CAPTURED / f"{name}.json").write_text(text + "\n", "utf-8")


def _keep_pictures(name: str, folder: Path, outputs: list[list[str]]) -> None:
    """Each picture as SVG, or as PNG where that is larger than a page should load."""
    for old in CAPTURED.glob(f"{name}_*.*"):
        old.unlink()
    drawn = [found[1] for lines in outputs for line in lines if (found := _PICTURE.match(line))]
    for picture in drawn:
        if not picture.startswith(f"{name}_"):
            raise ValueError(f"{picture}: the name of a picture begins with {name}_")
        kinds = [folder / f"{picture}.{ending}" for ending in ("svg", "png")]
        small = [path for path in kinds if path.stat().st_size <= LARGEST_PICTURE]
        if not small:
            raise ValueError(f"{picture}: SVG and PNG are both above {LARGEST_PICTURE} bytes")
        shutil.copy(small[0], CAPTURED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run tutorials, and keep what they print and draw")
    parser.add_argument("names", nargs="*", help="all, if none is given")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    CAPTURED.mkdir(parents=True, exist_ok=True)
    if args.here:
        capture(args.names[0])
        return
    for name in args.names or names():
        print(f"{name} ...", flush=True)
        subprocess.run([sys.executable, __file__, "--here", name], check=True)
        print(f"{name}: {captured(name)['minutes']} minutes", flush=True)


if __name__ == "__main__":
    main()
