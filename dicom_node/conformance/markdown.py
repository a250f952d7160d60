"""The little Markdown that the statement needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a table without rows says so."""
    lines = [_line(headings), _line(["---"] * len(headings))]
    body = [_line([_cell(value) for value in row]) for row in rows]
    return "\n".join([*lines, *body]) if body else "None."


def section(level: int, title: str, *parts: str) -> str:
    """Return a heading and what stands below it, a blank line between each."""
    return "\n\n".join([f"{'#' * level} {title}", *(part for part in parts if part)])


def bullets(points: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {point}" for point in points)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    # A bar would end the cell, and < may begin a tag: values are a site's own, or ours.
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
