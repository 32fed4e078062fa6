"""Equations of the pages as MathML, made at build time: browsers draw it without a script.

An equation that latex2mathml cannot translate is an error of the build. It leaves what it does not
know in its output, so the output is read again here.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

_LOGGER = logging.getLogger(__name__)
_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
# Environments that latex2mathml does not know, by one that looks the same.
_ENVIRONMENTS = re.compile(r"\\(begin|end)\{(aligned|split|align|gathered|gather\*?)\}")
_CHILDREN = {
    "mfrac": 2,
    "mroot": 2,
    "msub": 2,
    "msup": 2,
    "munder": 2,
    "mover": 2,
    "msubsup": 3,
    "munderover": 3,
}


class EquationError(ValueError):
    """An equation that has no translation."""


def mathml(latex: str, display: bool) -> str:
    """The MathML of an equation.

    Args:
        latex: without dollar signs.
        display: whether it stands on a line of its own.

    Raises:
        EquationError: says which part of it is not known.
    """
    text = _ENVIRONMENTS.sub(r"\\\1{align*}", latex.strip())
    if r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{align*}}{text}\end{{align*}}"
    if text.count("{") != text.count("}"):
        raise EquationError("its braces do not match")
    try:
        root = ElementTree.fromstring(convert(text, display="block" if display else "inline"))
    except ElementTree.ParseError as error:
        raise EquationError(f"latex2mathml made no valid MathML of it ({error})") from error
    except Exception as error:  # its errors have no common class
        raise EquationError(f"latex2mathml: {type(error).__name__} {error}".strip()) from error
    for element in root.iter():
        _check(element)
        _embolden(element)
        _set_operator(element)
    ElementTree.register_namespace("", _NAMESPACE.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode")


def _check(element: ElementTree.Element) -> None:
    """Refuse commands that were left as they are, and fractions and indices without a part."""
    name, content = element.tag.removeprefix(_NAMESPACE), element.text or ""
    if "\\" in content:
        raise EquationError(f"{content} is not known to latex2mathml")
    if len(element) != _CHILDREN.get(name, len(element)):
        raise EquationError(f"a part of {name} is missing")


def _embolden(element: ElementTree.Element) -> None:
    r"""Bold letters as characters of their own: browsers ignore mathvariant."""
    style = element.attrib.get("mathvariant", "")
    if style not in ("bold", "bold-italic") or len(element.text or "") != 1:
        return
    words = unicodedata.name(element.text or "").split()  # such as GREEK SMALL LETTER MU
    try:
        letter = unicodedata.lookup(
            f"MATHEMATICAL {style.replace('-', ' ')} {words[1]} {words[-1]}"
        )
    except (KeyError, IndexError):
        return
    element.text = letter
    del element.attrib["mathvariant"]


def _set_operator(element: ElementTree.Element) -> None:
    """Names such as erf and bars of absolute values without the spaces of operators."""
    text = element.text or ""
    if element.tag != f"{_NAMESPACE}mo":
        return
    if len(text) > 1 and text.isalpha():
        element.tag = f"{_NAMESPACE}mi"
    elif text in ("|", "∣"):
        element.attrib |= {"lspace": "0", "rspace": "0"}


def _translated(node: nodes.Element, display: bool) -> str:
    try:
        return mathml(node.astext(), display)
    except EquationError as error:
        _LOGGER.error("equation %r: %s", node.astext(), error, location=node)
        return ""


def _visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_translated(node, display=False))
    raise nodes.SkipNode


def _visit_block(translator: Any, node: nodes.math_block) -> None:
    wrapped = set(node["ids"]) <= set(node.parent["ids"])  # MyST names the wrapper as well
    start = '<div class="math-block">' if wrapped else None
    translator.body.append(start or translator.starttag(node, "div", CLASS="math-block"))
    translator.body.append(_translated(node, display=True))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, of the name latex2mathml."""
    app.add_html_math_renderer("latex2mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
