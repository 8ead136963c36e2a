"""Small pieces of the report's page: tables, pictures, and numbers as people read them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML already."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def section(name: str, title: str, content: str) -> str:
    """A part of the page under a heading; nothing at all where there is no content."""
    if not content:
        return ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{content}</section>'


def note(text: str) -> str:
    """What is said below a heading; HTML already."""
    return f'<p class="note">{text}</p>'


def picture(png: bytes, alt: str, kind: str = "") -> str:
    """A PNG inside the page."""
    image = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(alt, quote=True)}" src="data:image/png;base64,{image}">'


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def count(amount: float, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{amount:,.0f} {noun}{'' if amount == 1 else 's'}"


def percent(share: float) -> str:
    """With as many digits as tell it from 0 and from 100 %."""
    digits = 0 if 0.1 <= share <= 0.9 or share in (0, 1) else 1 if 0.001 <= share <= 0.999 else 3
    return f"{100 * share:.{digits}f} %"


def number(value: float, digits: int) -> str:
    """With a proper minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
