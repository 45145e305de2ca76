"""Text for a terminal: aligned columns, and names from files that cannot steer it."""

from __future__ import annotations

from collections.abc import Sequence


def visible(text: str) -> str:
    """Returns the text with control characters written as escapes; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False, indent: str = "") -> str:
    """Returns rows of cells as aligned columns, two spaces apart, one line per row.

    Lines are plain text of any length: nothing is wrapped, coloured or read as markup (`f32[batch]`). Wide characters
    take two columns, as terminals show them.

    Args:
        rows: the cells of each row; a short row leaves its last columns empty.
        right: align all columns to the right instead of the left.
        indent: put before each line.
    """
    # rich measures, and its Table is not used: it takes a hundred times as long (1.4 s for 12,000 cells), and cuts or
    # wraps lines that are longer than the terminal.
    from rich.cells import cell_len

    cells = [[visible(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    sizes = [[cell_len(cell) for cell in row] for row in cells]
    count = max(map(len, sizes), default=0)
    widths = [max(row[place] for row in sizes if place < len(row)) for place in range(count)]
    lines = []
    for row, lengths in zip(cells, sizes, strict=True):
        spaces = [" " * (width - length) for width, length in zip(widths, lengths, strict=False)]
        padded = [space + cell if right else cell + space for cell, space in zip(row, spaces, strict=True)]
        lines.append((indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)
