"""Charts of the benchmarks as SVG files: groups of horizontal bars that a page shows in light and in dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

WIDTH, LABELS, VALUES = 760, 230, 130  # SVG units; room for names on the left and for numbers on the right
_BAR, _GAP, _HEAD = 13, 26, 42
_COLOURS = ("#2f6fde", "#14a37f", "#b0763a", "#9a5fc7", "#c64f6e", "#6b7785")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:14px}.axis{stroke:#8c959f}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)

Group = tuple[str, Sequence[tuple[str, float]]]  # a heading, and the values by name


def bars_svg(
    title: str,
    groups: Sequence[Group],
    *,
    maximum: float | None = None,
    text: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Groups of bars, the same name always in the same colour.

    Args:
        title: above.
        groups: from top to bottom.
        maximum: what the whole width means; None for the largest value.
        text: of a value, beside its bar.
    """
    most = maximum or max((value for _, bars in groups for _, value in bars), default=1.0)
    names = list(dict.fromkeys(name for _, bars in groups for name, _ in bars))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    parts = [f'<text class="title" x="0" y="16">{escape(title)}</text>']
    y = _HEAD
    for heading, bars in groups:
        parts.append(f'<text x="0" y="{y - 4}">{escape(heading)}</text>')
        for name, value in bars:
            width = (WIDTH - LABELS - VALUES) * min(max(value / most, 0.0), 1.0)
            label = f'<text x="{LABELS - 8}" y="{y + 10}" text-anchor="end">{escape(name)}</text>'
            bar = f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{colours[name]}"/>'
            parts.append(f'{label}{bar}<text x="{LABELS + width + 6:.1f}" y="{y + 10}">{escape(text(value))}</text>')
            y += _BAR
        y += _GAP
    axis = f'<line class="axis" x1="{LABELS}" y1="{_HEAD - 6}" x2="{LABELS}" y2="{y - _GAP + 6}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - _GAP + 12}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><style>{_STYLE}</style>{"".join(parts)}{axis}</svg>\n'
    )
