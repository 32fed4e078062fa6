"""The built pages are looked at: links and anchors lead somewhere, and nothing needs a network."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)

# What browsers load by themselves, by tag: the attribute with the address.
_LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src"}


class _Page(HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if _LOADED.get(tag) in found:
            self.loaded.append(found[_LOADED[tag]])


def broken(folder: Path) -> list[str]:
    """What is wrong with the pages of a folder, one line each.

    Args:
        folder: with HTML files.
    """
    pages = {
        path: _Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    out = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        for address in page.loaded:
            if urlsplit(address).netloc:
                out.append(f"{name}: loads {address}, which needs a network")
        for address in [*page.links, *page.loaded]:
            reason = _reason(path, address, pages)
            if reason:
                out.append(f"{name}: {address}: {reason}")
    return out


def _reason(path: Path, address: str, pages: dict[Path, _Page]) -> str | None:
    """Why an address of a page leads nowhere; None where it does not."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "no such file"
    fragment = unquote(parts.fragment)
    if fragment.endswith(".md"):  # a source that is not there: MyST has said so
        return None
    if fragment and target in pages and fragment not in pages[target].anchors:
        return "no such anchor"
    return None


def _finished(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for line in broken(Path(app.outdir).resolve()):
        _LOGGER.error(line)


def setup(app: Sphinx) -> dict[str, Any]:
    """Look at the pages after each build."""
    app.connect("build-finished", _finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
