"""Executed notebooks as offline HTML pages, and the index page of a report.

A page holds everything it shows: formulas become MathML, images are data URIs, and a content
security policy forbids every request and every script but the page's own, by its hash. What would
still load or run something is an error.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import nbconvert
from bs4 import BeautifulSoup, Tag
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

from siutils.core import in_html, visible

TEMPLATES = Path(__file__).parent / "templates"
# LaTeX that latex2mathml gets wrong, and what it gets right.
_REWRITTEN = {
    r"\operatorname*": r"\operatorname",
    r"\mathbb{1}": "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}",
    r"\arg": r"\operatorname{arg}",
}
SCRIPT = (TEMPLATES / "page.js").read_text(encoding="utf-8")  # the only one that a page may run
_ACTIVE = {"script", "form", "iframe", "frame", "frameset", "object", "embed", "applet", "base"}
_LINKS = {"href", "xlink:href", "action", "formaction", "values", "from", "to", "by"}
# nbconvert writes this text where a notebook gives none.
_NO_ALT = "No description has been provided for this image"


@dataclass(frozen=True)
class Entry:
    """One notebook of a report: what navigation and index page say of it.

    Attributes:
        name: File name without suffix.
        title: Title of the page.
        question: The question that the notebook answers.
        dataset: Data set, empty if it has none.
        figure: Main figure as HTML.
        table: Main table as HTML.
        files: Table files, relative to the index page.
        seconds: Duration in words.
    """

    name: str
    title: str
    question: str = ""
    dataset: str = ""
    figure: str = ""
    table: str = ""
    files: Sequence[str] = ()
    seconds: str = ""


@dataclass(frozen=True)
class Frame:
    """What the header and the footer of each page of a report say."""

    profile: str
    version: str
    commit: str
    date: str
    pages: Sequence[Entry]
    run: str = ""
    unfinished: bool = False


@dataclass(frozen=True)
class Heading:
    """A line of the table of contents; ``text`` is HTML."""

    level: int
    text: str
    anchor: str


class _Renderer(IPythonRenderer):
    """Markdown to HTML with MathML and headings that the table of contents can link.

    In computed Markdown, which may hold names, HTML, images and what is no formula stay text.
    """

    def __init__(self, computed: bool = False) -> None:
        super().__init__(escape=False, allow_harmful_protocols=False)
        self.computed = computed
        self.headings: list[Heading] = []

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        words = re.sub(r"<annotation.*?</annotation>|<[^>]*>", "", text)
        anchor = base = re.sub(r"[^\w]+", "-", html.unescape(words).lower()).strip("-") or "section"
        taken = {heading.anchor for heading in self.headings}
        number = 2
        while anchor in taken:
            anchor, number = f"{base}-{number}", number + 1
        self.headings.append(Heading(level, re.sub(r"</?a\b[^>]*>", "", text), anchor))
        link = f'<a class="anchor" href="#{anchor}" aria-label="Link to this section">#</a>'
        return f'<h{level} id="{anchor}">{text}{link if level > 1 else ""}</h{level}>\n'

    def block_html(self, html: str) -> str:
        return f"<p>{in_html(html)}</p>" if self.computed else str(super().block_html(html))

    def inline_html(self, html: str) -> str:
        return in_html(html) if self.computed else str(super().inline_html(html))

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return in_html(text) if self.computed else str(super().image(text, url, title))

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            return mathml(body, display)
        except ValueError:
            if self.computed:
                return in_html(f"${body}$")
            raise

    def block_math(self, body: str) -> str:
        return self.inline_math(body, display="block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def mathml(formula: str, display: str = "inline") -> str:
    r"""Converts a LaTeX formula to MathML, which browsers show without a script.

    Raises:
        ValueError: If the formula cannot be converted.

    >>> mathml("x^2").count("<msup>")
    1
    """
    rewritten = formula.strip()
    for wrong, right in _REWRITTEN.items():
        rewritten = rewritten.replace(wrong, right)
    try:
        converted: str = latex2mathml.converter.convert(rewritten, display=display)
    except Exception as error:  # the converter raises many kinds, all about the formula
        raise ValueError(f"formula ${formula.strip()}$: {type(error).__name__} {error}") from None
    unknown = re.search(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", " ", converted))
    if unknown:
        raise ValueError(f"formula ${formula.strip()}$: {unknown[0]} has no MathML")
    alternative = in_html(" ".join(formula.split()))
    return converted.replace("<math ", f'<math alttext="{alternative}" ', 1)


def notebook_page(
    notebook: NotebookNode,
    entry: Entry,
    frame: Frame,
    parameters: Sequence[tuple[str, str, str]] = (),
) -> str:
    """Renders an executed notebook as a page; code is hidden behind a switch.

    Args:
        notebook: The notebook; it is not changed.
        entry: What the page's header says.
        frame: What all pages of the report share.
        parameters: (name, value, help) per parameter, shown in place of the parameters cell.

    Raises:
        ValueError: If a formula cannot be converted, an image has no alt text, or the page would
            load a file.
    """
    renderer, computed = _Renderer(), _Renderer(computed=True)
    computed.headings = renderer.headings
    exporter = nbconvert.HTMLExporter(
        template_name="siutils",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={
            "markdown2html": MarkdownWithMath(renderer=renderer).render,
            "computed2html": MarkdownWithMath(renderer=computed).render,
        },
    )
    body, _ = exporter.from_notebook_node(_with_parameters(notebook, parameters))
    title_in_body = any(heading.level == 1 for heading in renderer.headings)
    page = _page(
        "page.html.j2",
        frame,
        name=entry.name,
        title=entry.title,
        dataset=entry.dataset,
        heading="" if title_in_body else entry.title,
        contents=[h for h in renderer.headings if h.level in (2, 3)],
        body=body,
    )
    check_page(page, f"{entry.name}.html")
    return page


def index_page(frame: Frame, facts: Sequence[tuple[str, str]], title: str, lead: str) -> str:
    """Renders the index page: facts of the run, then each notebook with its main results.

    Raises:
        ValueError: If a figure has no alt text or the page would load a file.
    """
    page = _page(
        "index.html.j2",
        frame,
        title=title,
        heading=title,
        lead=lead,
        facts=facts,
        entries=frame.pages,
        index=True,
    )
    check_page(page, "index.html")
    return page


def check_page(page: str, name: str) -> None:
    """Refuses a page that would load, run or send anything, or has an image without alt text.

    Raises:
        ValueError: Naming the page and the first offender.

    >>> check_page('<img src="data:," alt="a dot">', "a.html")
    >>> check_page('<script src="https://example.org/x.js"></script>', "a.html")
    Traceback (most recent call last):
        ...
    ValueError: a.html: <script> would load https://example.org/x.js; a page must hold all it shows
    """
    for tag in BeautifulSoup(page, "html.parser").find_all(True):
        for address in _loaded(tag):
            if not address.strip().startswith(("data:", "#")):
                raise ValueError(
                    f"{name}: <{tag.name}> would load {address[:80]}; a page must hold all it shows"
                )
        if tag.name in _ACTIVE and (tag.name != "script" or tag.get_text() != SCRIPT):
            raise ValueError(f"{name}: <{tag.name}> is not allowed; a page runs nothing")
        if str(tag.get("http-equiv", "")).strip().lower() == "refresh":
            raise ValueError(f"{name}: <{tag.name} http-equiv=refresh> would open another page")
        for attribute, value in tag.attrs.items():
            target = re.sub(r"[\x00-\x20]", "", str(value)).lower()
            link = attribute in _LINKS and re.search("(java|vb)script:|data:text", target)
            if attribute.lower().startswith("on") or link:
                raise ValueError(f"{name}: <{tag.name} {attribute}=…> would run a script")
        if tag.name == "img" and str(tag.get("alt", "")).strip() in {"", _NO_ALT}:
            source = str(tag.get("src", ""))[:40]
            raise ValueError(f"{name}: image {source} has no alt text; show it with Results.figure")


def _loaded(tag: Tag) -> Iterator[str]:
    """Yields the addresses that a browser fetches for an element when it opens the page."""
    names = {"src", "srcset", "poster", "data", "background", "xlink:href"}
    if tag.name not in {"a", "area"}:
        names.add("href")
    yield from (str(tag[name]) for name in names & tag.attrs.keys())
    css = str(tag.get("style", "")) + (tag.get_text() if tag.name == "style" else "")
    for url, imported in re.findall(r"url\(\s*['\"]?([^'\")]*)|@import\s+['\"]([^'\"]*)", css):
        yield url or imported


def _with_parameters(
    notebook: NotebookNode, parameters: Sequence[tuple[str, str, str]]
) -> NotebookNode:
    """Copies a notebook, with a table for the parameters cell and without the injected cell."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in _tags(c)]
    for cell in notebook.cells:
        if "parameters" in _tags(cell) and parameters:
            cell.metadata["siutils_html"] = _parameter_table(parameters)
    return notebook


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _parameter_table(parameters: Sequence[tuple[str, str, str]]) -> str:
    rows = "".join(
        f"<tr><td><code>{in_html(name)}</code></td><td>{in_html(value)}</td>"
        f"<td>{in_html(text)}</td></tr>"
        for name, value, text in parameters
    )
    return (
        '<details class="parameters" open><summary>Parameters of this run</summary>'
        '<div style="overflow-x:auto"><table><thead><tr><th>parameter</th><th>value</th>'
        f"<th>meaning</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _page(template: str, frame: Frame, **values: Any) -> str:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    values |= {"script": Markup(SCRIPT), "script_hash": base64.b64encode(digest).decode()}
    return environment.get_template(template).render(frame=frame, code_css=_code_css(), **values)


def _code_css() -> Markup:
    """Colors of highlighted code, for light and dark screens."""
    light = HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark", nobackground=True).get_style_defs(".highlight")
    return Markup(f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}")
