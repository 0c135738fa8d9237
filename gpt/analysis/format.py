"""Bytes, seconds and tables as a reader wants them."""

import re
from collections.abc import Iterable, Sequence


def human_bytes(n: float) -> str:
    """Return 123456789 as '118 MiB'."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """Return 5025 as '84 min', and 6000 as '1 h 40 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 72:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.1f} days"


Cell = str | float | None


def table(rows: Iterable[Sequence[Cell]], columns: Sequence[str]) -> str:
    """Return a line of headings and one line per row, in aligned columns.

    rows: the cells of each row. None, or a row that ends early, leaves a blank.
    columns: "heading:format" per column, such as "ms:>9.2f". The format includes the width and applies to the values.
    """
    headings = [column.rpartition(":")[0] for column in columns]
    return "\n".join(table_row(cells, columns) for cells in (headings, *rows))


def table_row(cells: Sequence[Cell], columns: Sequence[str]) -> str:
    """Return one line of such a table."""
    formats = [column.rpartition(":")[2] for column in columns]
    return "".join(_format_cell(cell, spec) for cell, spec in zip(cells, formats, strict=False)).rstrip()


def _format_cell(cell: Cell, spec: str) -> str:
    if isinstance(cell, int | float):
        return format(cell, spec)
    alignment_and_width = "".join(re.findall(r"^[<>]?\d+", spec))
    return format(cell or "", alignment_and_width)
