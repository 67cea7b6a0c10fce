"""HTML from values: whatever is not HTML already is escaped, so that data cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
"""What HTML cannot hold, and what would reorder the text around it."""

_VOID = frozenset({"img", "link", "meta"})
_BLOCKS = frozenset(
    {"body", "caption", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "head", "header", "html"}
    | {"h1", "h2", "h3", "li", "link", "main", "meta", "nav", "p", "section", "small", "style", "summary"}
    | {"svg", "table", "tbody", "td", "th", "thead", "title", "tr", "ul"}
)
"""What a line ends after, so that the file can be read and compared."""


class Html(str):
    """Text that is HTML already and goes on the page as it is."""

    __slots__ = ()


def text(value: str) -> Html:
    """``value`` as text of the page, also within an attribute; what HTML cannot hold shows as �."""
    return value if isinstance(value, Html) else Html(html.escape(_UNPRINTABLE.sub("\ufffd", value)))


def joined(parts: Iterable[str], between: str = "") -> Html:
    """``parts`` one after another, each escaped unless it is HTML."""
    return Html(text(between).join(text(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """An element.

    Attributes that are None are left out. In their names ``_`` stands for ``-``, and one at the end, as in
    ``class_``, for nothing.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "\n" if name in _BLOCKS else ""
    return Html(f"<{name}{written}>{end if name in _VOID else f'{joined(children)}</{name}>{end}'}")


def _value(value: str | float) -> str:
    """An attribute's value; coordinates need no more than two decimals."""
    return value if isinstance(value, str) else f"{round(value, 2):g}"


def section(identifier: str, title: str, about: str, *children: str) -> Html:
    """A section with its heading and the sentence that says what it shows."""
    heading = f"{identifier}-title"
    lead = [tag("p", about, class_="about")] if about else []
    return tag(
        "section", tag("h2", title, id=heading), *lead, *children, id=identifier, aria_labelledby=heading
    )


def table(caption: str, columns: Sequence[str], *bodies: Html, class_: str | None = None) -> Html:
    """A table that scrolls by itself where the page is too narrow; ``bodies`` are ``tbody`` elements.

    A column whose title begins with ``#`` holds numbers, and is aligned on the right.
    """
    heads = [
        tag("th", title.removeprefix("#"), scope="col", class_="number" if title.startswith("#") else None)
        for title in columns
    ]
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *heads)), *bodies, class_=class_)
    return tag("div", whole, class_="scroll", role="region", tabindex="0", aria_label=caption)


def row(head: str, *cells: str, class_: str | None = None) -> Html:
    """A row: its head, then ready cells."""
    return tag("tr", tag("th", head, scope="row"), *cells, class_=class_)


def cell(*content: str) -> Html:
    """A cell of words."""
    return tag("td", *content)


def number(*content: str) -> Html:
    """A cell of a number."""
    return tag("td", *content, class_="number")


def small(*content: str) -> Html:
    """Small print, in lines of its own below what stands before it."""
    return Html(f"\n{tag('small', *content)}")


def details(summary: str, *children: str) -> Html:
    """What is shown on demand only."""
    return tag("details", tag("summary", summary), *children)
