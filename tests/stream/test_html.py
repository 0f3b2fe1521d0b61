"""Pages and their parts: what is put in is text, what is missing is an error, and nothing may be loaded."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateNotFound, UndefinedError

from stream import html

parts = html.TEMPLATES.get_template("stream.html/parts.html.j2").module
#: A page that has no more than the shell.
EMPTY = html.TEMPLATES.from_string("{% extends 'stream.html/page.html.j2' %}{% block content %}{% endblock %}")


def test_the_shell_is_a_page_that_opens_no_connection() -> None:
    page = EMPTY.render(title="a <b> & 'c'")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert '<html lang="en">' in page
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in page
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in page
    assert '<meta name="referrer" content="no-referrer">' in page
    assert "<title>a &lt;b&gt; &amp; &#39;c&#39;</title>" in page
    assert not re.search(r"<script|https?:|//", page)


@given(st.text(), st.text())
def test_what_is_put_in_is_text(one: str, other: str) -> None:
    for shown in (
        parts.note(one),
        parts.definitions([(one, other)]),
        parts.table([one], [[other, one]], [other]),
        parts.figure(b"", one),
    ):
        tags = "p|dl|dt|dd|div|table|thead|tr|th|tbody|td|figure|img|figcaption"
        assert re.sub(rf"</?({tags})(( class| scope| alt| src)=\"[^\"<>]*\")*>", "", shown).count("<") == 0


def test_a_table_names_its_columns_and_ours_stand_out() -> None:
    shown = parts.table(["", "a"], [["x", "1"], ["y", "2"]], ["y"])
    assert shown.count('<th scope="col">') == 2
    assert "<tr><td>x</td><td>1</td></tr>" in shown
    assert '<tr class="ours"><td>y</td><td>2</td></tr>' in shown


def test_a_figure_has_its_bytes_and_a_text() -> None:
    shown = parts.figure(b"<svg/>", "what it shows")
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', shown)
    assert b64decode(data) == b"<svg/>"
    assert shown.count("what it shows") == 2


@pytest.mark.parametrize(("text", "shown"), [("ends so", "Ends so."), ("Ends so.", "Ends so."), ("σ", "Σ."), ("", ".")])
def test_a_remark_is_a_sentence(text: str, shown: str) -> None:
    assert html.sentence(text) == shown


def test_what_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        EMPTY.render()
    with pytest.raises(TemplateNotFound):
        html.render("stream.html/no_such_page.html.j2")
