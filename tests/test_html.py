import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from siutils.report.pages import Entry, Frame, check_page, index_page, mathml, notebook_page

ENTRY = Entry("01_a", "A title", question="Why?", dataset="digits")
FRAME = Frame("long", "0.1.0", "0123456789", "2026-01-01 12:00 UTC", [ENTRY, Entry("02_b", "B")])


def page(*cells, frame=FRAME, parameters=()):
    return notebook_page(new_notebook(cells=list(cells)), ENTRY, frame, parameters)


def text_of(*cells):
    return re.search(r"<main>(.*)</main>", page(*cells), re.DOTALL)[1]


def shown(data, metadata=None):
    output = new_output("display_data", data, metadata=metadata or {})
    return new_code_cell("show()", outputs=[output])


def test_formulas_become_mathml_in_cells_and_outputs():
    body = text_of(
        new_markdown_cell(r"Inline $h_1(i)$ and" "\n\n" r"$$\frac{1}{N}$$"),
        shown({"text/markdown": r"SI $\ge 0.5$"}),
        shown({"text/latex": r"$\displaystyle x^2$"}),
    )
    assert body.count("<math ") == 4
    assert '<math alttext="h_1(i)"' in body
    assert 'display="block"' in body
    assert "$" not in body


def test_dollars_in_code_and_escaped_ones_are_no_formulas():
    body = text_of(
        new_markdown_cell("Run `echo $A $B` for \\$5.\n\n```\nx = $y$\n```\n"),
        new_code_cell("cost = '$1 and $2'"),
    )
    assert "<math" not in body
    for kept in ("echo $A $B", "for $5.", "x = $y$", "$1 and $2"):
        assert kept in body


@pytest.mark.parametrize(
    ("formula", "part"),
    [
        (r"\mathbb{1}[y_i = y_j]", "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}"),
        (r"\arg\min_c \lVert x-\mu_c \rVert", "arg"),
        (r"\operatorname*{arg\,max}_c s_c", "<mi>a</mi>"),
        (r"\begin{cases}1 & a\\0 & b\end{cases}", "<mtable>"),
    ],
)
def test_the_formulas_of_this_project_convert(formula, part):
    assert part in mathml(formula)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (new_markdown_cell(r"$\foo x$"), r"formula \$\\foo x\$: \\foo has no MathML"),
        (new_markdown_cell(r"$\frac$"), r"formula \$\\frac\$"),
        (new_markdown_cell("![](data:image/png;base64,aGk=)"), "has no alt text"),
        (shown({"image/png": "aGk="}), r"01_a\.html: image data:image/png.* has no alt text"),
    ],
)
def test_what_cannot_be_shown_is_an_error(cell, message):
    with pytest.raises(ValueError, match=message):
        page(cell)


def test_headings_make_the_table_of_contents():
    markdown = "# Top\n\n## Same\n\n## Same\n\n### With $x$ & `code`\n\n#### Deep"
    whole = page(new_markdown_cell(markdown))
    contents = re.search(r'<nav class="contents".*?</nav>', whole, re.DOTALL)[0]
    anchors = re.findall(r'href="#([^"]+)"', contents)
    assert anchors[:2] == ["same", "same-2"]
    assert len(anchors) == 3
    assert "<math" in contents
    for anchor in anchors:
        assert whole.count(f'id="{anchor}"') == 1
    assert whole.count("<h1") == 1


def test_parameters_become_a_table():
    tagged = new_code_cell("epochs: int = 4  # passes", metadata={"tags": ["parameters"]})
    injected = new_code_cell("epochs = 3", metadata={"tags": ["injected-parameters"]})
    notebook = new_notebook(cells=[tagged, injected])
    before = nbformat.writes(notebook)
    result = notebook_page(notebook, ENTRY, FRAME, [("epochs", "<3>", "passes & more")])
    assert nbformat.writes(notebook) == before
    assert "<td><code>epochs</code></td><td>&lt;3&gt;</td><td>passes &amp; more</td>" in result
    assert 'details class="code"' not in result


def test_code_is_hidden_but_there():
    body = text_of(new_code_cell("answer = 42"), new_code_cell("  "))
    assert body.count('<details class="code">') == 1
    assert "answer" in body
    assert "open" not in re.search(r"<details[^>]*>", body)[0]


def test_outputs_of_each_kind():
    stream = new_output("stream", name="stderr", text="a <warning>")
    body = text_of(
        new_code_cell("warn()", outputs=[stream]),
        shown({"text/html": "<b>bold</b>", "text/plain": "plain"}),
        shown({"image/png": "aGk=\n"}, {"image/png": {"alt": "a dot"}}),
        shown({"image/svg+xml": "<svg/>"}, {"image/svg+xml": {"alt": "a line"}}),
        shown({"application/javascript": "alert(1)", "text/plain": "Javascript object"}),
    )
    for part in ("a &lt;warning&gt;", "<b>bold</b>", 'alt="a dot"', 'alt="a line"'):
        assert part in body
    assert "plain" not in body
    assert "alert(1)" not in body


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<img alt="a" src="figures/a.svg">',
        '<img alt="a" src="data:," srcset="http://example.org/a.png 2x">',
        '<p style="background: url(http://example.org/a.png)">',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>@font-face { src: url('/font.woff2') }</style>",
        '<svg><image xlink:href="http://example.org/a.png"/></svg>',
        '<svg><use href="icons.svg#a"/></svg>',
        '<iframe src="https://example.org"></iframe>',
        '<object data="https://example.org/a.pdf"></object>',
        '<video poster="https://example.org/a.png"></video>',
    ],
)
def test_whatever_would_load_is_refused(html):
    with pytest.raises(ValueError, match=r"a\.html: <\w+> would load"):
        check_page(html, "a.html")
    with pytest.raises(ValueError, match=r"01_a\.html: <\w+> would load"):
        page(shown({"text/html": html}))


def test_links_data_and_fragments_are_fine():
    check_page('<a href="https://example.org">x</a><svg><use href="#a"/></svg>', "a.html")
    check_page('<p style="background: url(data:image/png;base64,aGk=)">', "a.html")


def test_header_and_footer():
    whole = page(new_markdown_cell("Text"))
    assert "<h1>A title</h1>" in whole  # the notebook has no first heading
    assert '<a href="01_a.html" aria-current="page">A title</a>' in whole
    assert '<a href="02_b.html">B</a>' in whole
    assert "data <b>digits</b>" in whole
    assert "siutils 0.1.0 · commit 0123456789 · 2026-01-01 12:00 UTC" in whole
    assert "default-src 'none'" in whole
    assert "A demonstration." not in whole
    quick = Frame("quick", "0.1.0", "0", "today", [ENTRY])
    assert "A demonstration." in page(new_markdown_cell("Text"), frame=quick)
    assert "A demonstration." in index_page(quick, [], "T", "L")


def test_index_page_shows_facts_and_entries():
    dot = '<img src="data:," alt="dot">'
    entry = Entry("01_a", "A <title>", "Why?", figure=dot, table="<i>t</i>")
    whole = index_page(Frame("long", "1", "c", "d", [entry]), [("device", "cpu")], "T", "Lead.")
    link, fact = '<a href="01_a.html">A &lt;title&gt;</a>', "<dt>device</dt><dd>cpu</dd>"
    for part in (link, fact, dot, "<i>t</i>"):
        assert part in whole
    bad = Frame("long", "1", "c", "d", [Entry("01_a", "A", figure='<img src="data:," alt="">')])
    with pytest.raises(ValueError, match=r"index\.html: image"):
        index_page(bad, [], "T", "L")
