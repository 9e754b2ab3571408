"""Data as text, a function for each place where names land; nothing else puts data there.

Names of classes, files and networks are data: they may hold markup, formulas, terminal commands or
bytes that are no text. Each function returns what shows the name there, and does nothing else.
"""

from __future__ import annotations

import html
import re
import unicodedata


def visible(value: object) -> str:
    r"""Writes out what has no sign of its own: controls, line ends, changes of direction.

    For a terminal, and the base of all below.

    >>> visible("a\x1b[31m\n"), visible("caf\udce9")
    ('a\\x1b[31m\\n', 'caf\\udce9')
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _SIGNLESS else char
        for char in text
    )


_SIGNLESS = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def in_html(value: object) -> str:
    """For an element or a quoted attribute of a page.

    >>> in_html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(visible(value))


def in_markdown(value: object) -> str:
    """For a sentence in Markdown: every sign is written as an entity, so that none is markup.

    >>> in_markdown("a_b $x$")
    'a&#95;b &#36;x&#36;'
    """
    return re.sub(r"[^\w ]|_|^ | $| (?= )", lambda sign: f"&#{ord(sign[0])};", visible(value))


def in_figure(value: object) -> str:
    r"""For a matplotlib text, whose lines may end: a dollar is a dollar, no formula.

    >>> in_figure("$x$\n\x00")
    '\\$x\\$\n\\x00'
    """
    return "\n".join(visible(line) for line in str(value).split("\n")).replace("$", r"\$")


def in_csv(value: object) -> object:
    """For a cell or a column's name: a quote in front, where a spreadsheet would see a formula.

    >>> in_csv("=1+1"), in_csv("cat"), in_csv(-0.5)
    ("'=1+1", 'cat', -0.5)
    """
    if not isinstance(value, str):
        return value
    return "'" * (value.lstrip()[:1] in tuple("=+-@")) + visible(value)
