"""Time and temporary memory of the forward pass as a problem grows: the table and the plot."""

from pathlib import Path
from typing import Any

from .text import markdown, number

#: By contender: mark, colour, and what it is called.
STYLES = {
    "xconv": ("o-", "#2a7f4f", "xconv"),
    "xconv-8MiB": ("o--", "#7fbf9a", "xconv within 8 MiB"),
    "torch": ("s-", "#d1495b", "torch"),
    "blog": ("^-", "#8d8d8d", "blog"),
}
TITLES = {"side": "side of one image, 8 channels", "batch": "images, 64x64, 16 channels", "channels": "channels, 32x32"}


def series(found: dict[str, Any], axis: str, contender: str, field: str) -> list[tuple[int, float]]:
    """Give the points of a curve: size, and the field of the result there."""
    sizes = {case: size for case, (name, size) in found.get("growth", {}).items() if name == axis}
    points = [
        (sizes[r["case"]], r[field])
        for r in found["results"]
        if r["case"] in sizes and r["contender"] == contender and r[field] is not None
    ]
    return sorted(points)


def axes_of(found: dict[str, Any]) -> list[str]:
    """Name what grows."""
    return list(dict.fromkeys(axis for axis, _ in found.get("growth", {}).values()))


def table(found: dict[str, Any]) -> str:
    """Write time and memory against size."""
    names = [name for name in STYLES if name in found["contenders"]]
    rows = []
    for axis in axes_of(found):
        times, memory = ({n: dict(series(found, axis, n, f)) for n in names} for f in ("median", "temporary_bytes"))
        for size in sorted({size for points in times.values() for size in points}):
            cells = (_cell(times[name].get(size), memory[name].get(size)) for name in names)
            rows.append([f"{axis} {size}", *cells])
    if not rows:
        return ""
    head = ["forward pass", *(STYLES[name][2] for name in names)]
    return f"As a problem grows (3x3 filters): ms; temporary MiB.\n\n{markdown(head, rows, left=1)}"


def _cell(seconds: float | None, memory: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{number(seconds * 1e3)}; {'-' if memory is None else number(memory / 2**20)}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw a column for everything that grows: time above, memory below."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    axes = axes_of(found)
    figure, panels = plt.subplots(2, len(axes), figsize=(4.6 * len(axes), 7), squeeze=False, sharey="row")
    for column, axis in enumerate(axes):
        # Pages are counted too roughly for what lies below a tenth of a MiB.
        for row, (field, factor, floor) in enumerate((("median", 1e3, 0), ("temporary_bytes", 2**-20, 0.1))):
            panel = panels[row, column]
            for contender, (mark, colour, label) in STYLES.items():
                points = series(found, axis, contender, field)
                if points:
                    sizes, values = zip(*points, strict=True)
                    scaled = [max(value * factor, floor) for value in values]
                    panel.plot(sizes, scaled, mark, color=colour, label=label, markersize=5, lw=1.6)
            _dress(panel, sorted({size for name, size in found["growth"].values() if name == axis}))
        panels[1, column].set_xlabel(TITLES.get(axis, axis), fontsize=11)
    panels[0, 0].set_ylabel("ms", fontsize=11)
    panels[1, 0].set_ylabel("temporary MiB", fontsize=11)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, 0.96), ncols=2, frameon=False, fontsize=11)
    figure.text(0.01, 0.985, "A forward pass as the problem grows", fontsize=14, va="top")
    figure.tight_layout(rect=(0, 0, 1, 0.87))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _dress(panel: Any, sizes: list[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(color="#dddddd", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)
