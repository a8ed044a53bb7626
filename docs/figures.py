"""Draws the figures of ``construction.md``: ``python docs/figures.py`` (needs matplotlib)."""

from itertools import product
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

IMAGES = Path(__file__).parent / "images"
#: One colour for each of the four windows (Okabe and Ito, told apart by the colour-blind too), and a light one of it.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa5f99")
LIGHT = ("#cfe3f1", "#f8ddc8", "#cdebe2", "#eddfe9")
INK, GREY, PAPER = "#222222", "#999999", "#ffffff"

SIDE, TAPS, OUT = 4, 3, 2
#: Pixels (row, column) of the window of every output, tap by tap.
WINDOWS = [[(i + p, j + q) for p, q in product(range(TAPS), repeat=2)] for i, j in product(range(OUT), repeat=2)]


def cell(ax: Axes, x: float, y: float, text: object = "", fill: str = PAPER) -> None:
    ax.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor=GREY, linewidth=0.8))
    ax.text(x + 0.5, y + 0.53, str(text), ha="center", va="center", fontsize=10, color=INK)


def frame(ax: Axes, x: float, y: float, width: float, height: float, colour: str, inset: float = 0.0) -> None:
    place, size = (x + inset, y + inset), (width - 2 * inset, height - 2 * inset)
    ax.add_patch(Rectangle(place, *size, fill=False, edgecolor=colour, linewidth=2.2))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.4}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **style))


def title(ax: Axes, x: float, y: float, text: str) -> None:
    ax.text(x, y, text, ha="center", va="bottom", fontsize=11, color=INK)


def panel(ax: Axes, width: float, height: float) -> None:
    ax.set(xlim=(-0.3, width), ylim=(height, -1.2), aspect="equal")
    ax.axis("off")


def draw_im2col() -> plt.Figure:
    """The image with its windows, the columns, the filter as a row, and the result."""
    figure, ax = plt.subplots(figsize=(9.6, 4.2), layout="constrained")
    panel(ax, 22.7, 9.3)
    top = 2.5
    title(ax, 2, top - 0.3, "image x, 4 \N{MULTIPLICATION SIGN} 4")
    for i, j in product(range(SIDE), repeat=2):
        cell(ax, j, top + i, SIDE * i + j)
    for k, (i, j) in enumerate(product(range(OUT), repeat=2)):
        frame(ax, j, top + i, TAPS, TAPS, COLOURS[k], inset=0.04 + 0.055 * k)
    ax.text(2, top + 4.6, "4 windows of 3 \N{MULTIPLICATION SIGN} 3", ha="center", fontsize=10, color=INK)
    arrow(ax, (4.4, top + 2), (7.2, top + 2))
    ax.text(5.8, top + 1.6, "im2col", ha="center", fontsize=11, color=INK)

    title(ax, 9.7, -0.3, "columns, 9 \N{MULTIPLICATION SIGN} 4")
    for k, window in enumerate(WINDOWS):
        for t, (i, j) in enumerate(window):
            cell(ax, 7.7 + k, t, SIDE * i + j, LIGHT[k])
        frame(ax, 7.7 + k, 0, 1, 9, COLOURS[k], inset=0.05)

    title(ax, 17.9, 1.2, "filter w as a row, 1 \N{MULTIPLICATION SIGN} 9")
    for t in range(9):
        cell(ax, 13.4 + t, 1.5, f"w{'₀₁₂₃₄₅₆₇₈'[t]}")
    title(ax, 15.4, 5.2, "w · columns, 1 \N{MULTIPLICATION SIGN} 4")
    for k in range(4):
        cell(ax, 13.4 + k, 5.5, f"y{'₀₁₂₃'[k]}", LIGHT[k])
    arrow(ax, (17.7, 6), (19.6, 6))
    title(ax, 20.9, 4.7, "result y, 2 \N{MULTIPLICATION SIGN} 2")
    for k, (i, j) in enumerate(product(range(OUT), repeat=2)):
        cell(ax, 19.9 + j, 5 + i, f"y{'₀₁₂₃'[k]}", LIGHT[k])
    return figure


def draw_col2im() -> plt.Figure:
    """The same four additions to pixel 5, with one thread per element of the columns, and with one per pixel."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
    pixel, left, top = (1, 1), 8, 1.2
    words = (
        ("scatter: one thread per element", "four threads add to one pixel, in any order"),
        ("gather: one thread per pixel", "one thread reads all four, in a fixed order"),
    )
    for ax, (head, foot), gathers in zip(axes, words, (False, True), strict=True):
        panel(ax, 12.4, 10.6)
        title(ax, 6, -0.45, head)
        for k, window in enumerate(WINDOWS):
            for t, (i, j) in enumerate(window):
                cell(ax, k, t, SIDE * i + j, LIGHT[k] if (i, j) == pixel else PAPER)
        for i, j in product(range(SIDE), repeat=2):
            cell(ax, left + j, top + i, "5" if (i, j) == pixel else "", "#ffe9a8" if (i, j) == pixel else PAPER)
        for k, window in enumerate(WINDOWS):
            t = window.index(pixel)
            arrow(ax, (k + 1.02, t + 0.5), (left + 0.98, top + 1.2 + 0.2 * k), COLOURS[k])
            if not gathers:
                frame(ax, k, t, 1, 1, INK, inset=0.04)
        if gathers:
            frame(ax, left + 1, top + 1, 1, 1, INK, inset=0.04)
        ax.text(6, 10, foot, ha="center", va="center", fontsize=10, color=INK)
    return figure


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "xconv", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    for name, draw in {"im2col": draw_im2col, "col2im": draw_col2im}.items():
        figure = draw()
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None}, facecolor=PAPER)
        plt.close(figure)


if __name__ == "__main__":
    main()
