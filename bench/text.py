"""Numbers and tables for people."""

import math


def markdown(head: list[str], rows: list[list[str]], left: int) -> str:
    """Write a table whose first columns are text, and the others numbers."""
    ruler = [":--" if i < left else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
