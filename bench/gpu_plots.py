"""The plots of a run on a GPU, from its JSON alone: a panel per precision and operation, with a row per case."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import CONV, OPERATIONS, UNFOLD
from .gpu import OURS, is_algorithm
from .gpu_report import NAMES, Results, jobs_of, names_of, over, over_best, peers_of

#: Marks and colours of the libraries, and of the rest in turn.
LIBRARIES = {"torch": ("o", "#d1495b"), "jax": ("s", "#2e6f95"), "its best algorithm": ("D", "#e0a030")}
MARKS = "^vPXd<>*hp"
COLOURS = ("#d1495b", "#2e6f95", "#e0a030", "#7a5195", "#4fa3a5", "#8c6d31", "#c66fb0", "#555555")
#: Times of xconv's own choice are rings around that of the algorithm.
RING = "#222222"
#: Where the axis goes so far, it has fewer ticks.
CROWDED = 300


@dataclass(frozen=True)
class Series:
    """What is drawn for every job: a name, a mark, its colour, and the ratio."""

    label: str
    marker: str
    colour: str
    ratio: Callable[[Results], float | None]
    ring: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """What matplotlib calls it."""
        ring = {"markerfacecolor": "none", "markeredgewidth": 1.4} if self.ring else {"markeredgewidth": 0}
        return {"marker": self.marker, "color": self.colour, **ring}


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw our time relative to that of each peer, and of our own best algorithm; nothing where there is neither."""
    series = [Series(f"÷ {peer}", *LIBRARIES.get(peer, ("o", RING)), _over(peer)) for peer in peers_of(found)]
    if any(map(is_algorithm, names_of(found))):
        series.append(Series("÷ its best algorithm", *LIBRARIES["its best algorithm"], over_best))
    if not series:
        return
    title = f"Time of xconv ÷ time of its peer: {found['machine']['device']}"
    _figure(found, series, (*CONV, *UNFOLD), title, "left of 1 (shaded) xconv is faster", path)


def plot_algorithms(found: dict[str, Any], path: Path) -> None:
    """Draw the time of each of our algorithms relative to torch's, or to our own choice where torch is missing."""
    names = names_of(found)
    base = "torch" if "torch" in names else OURS
    algorithms = list(filter(is_algorithm, names))
    if not algorithms:
        return
    series = [
        Series(name.removeprefix(f"{OURS}-"), MARKS[i % len(MARKS)], COLOURS[i % len(COLOURS)], _ratio(name, base))
        for i, name in enumerate(algorithms)
    ]
    series.append(Series("chosen by itself", "o", RING, _ratio(OURS, base), ring=True))
    title = f"Time of each algorithm ÷ time of {base}: {found['machine']['device']}"
    _figure(found, series, CONV, title, f"left of 1 (shaded) it is faster than {base}", path)


def _over(peer: str) -> Callable[[Results], float | None]:
    return lambda of: over(of, peer)


def _ratio(name: str, base: str) -> Callable[[Results], float | None]:
    """Give the time of one contender as a multiple of another's; of our own choice, in the same rounds if it can be."""

    def ratio(of: Results) -> float | None:
        if name not in of:
            return None
        seconds = of[name].get("beside") if base == OURS else None
        seconds = seconds or (of[base]["median"] if base in of else None)
        return of[name]["median"] / seconds if seconds else None

    return ratio


def _figure(
    found: dict[str, Any], series: list[Series], operations: tuple[str, ...], title: str, note: str, path: Path
) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    jobs = {key: of for key, of in jobs_of(found).items() if key[2] in operations}
    drawn = {p: [case for case in found["cases"] if any(key[:2] == (p, case) for key in jobs)] for p in NAMES}
    drawn = {precision: cases for precision, cases in drawn.items() if cases}
    operations = tuple(o for o in operations if any(key[2] == o for key in jobs))
    heights = [0.9 + 0.3 * len(cases) for cases in drawn.values()]
    width, height = 2.2 + 2.9 * len(operations), 1.5 + sum(heights)
    figure, panels = plt.subplots(
        len(drawn),
        len(operations),
        figsize=(width, height),
        height_ratios=heights,
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    values: list[float] = []
    for row, (precision, cases) in enumerate(drawn.items()):
        for column, operation in enumerate(operations):
            panel = panels[row, column]
            panel.set_title(f"{OPERATIONS[operation].title}, {NAMES[precision]}", fontsize=10, loc="left")
            of = [jobs.get((precision, case, operation), {}) for case in cases]
            ratios = _panel(panel, of, series)
            panel.set_visible(bool(ratios) or column == 0)  # the first has the names of the cases
            values += ratios
        panels[row, 0].set_yticks(range(len(cases)), cases, fontsize=9)
        panels[row, 0].set_ylim(len(cases) - 0.5, -0.5)
    _scale(panels[0, 0], values)
    handles = [plt.Line2D([], [], ls="", markersize=7, **one.style) for one in series]
    labels = [one.label for one in series]
    figure.text(0.01, 1 - 0.12 / height, title, fontsize=13, va="top")
    figure.legend(
        handles, labels, loc="upper left", ncols=5, frameon=False, fontsize=10, bbox_to_anchor=(0, 1 - 0.35 / height)
    )
    figure.supxlabel(note, fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.85 / height))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Any, of: list[Results], series: list[Series]) -> list[float]:
    """Draw one operation in one precision; the ratios that are in it."""
    panel.axvspan(1e-9, 1, color="#e8f3ec", zorder=0)
    panel.axvline(1, color="#222222", lw=1, zorder=1)
    panel.grid(color="#dddddd", lw=0.6, zorder=0)
    panel.tick_params(length=0, labelbottom=True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    values = []
    for one in series:
        points = [(ratio, row) for row, results in enumerate(of) if (ratio := one.ratio(results)) is not None]
        if points:
            values += [ratio for ratio, _ in points]
            size = 10 if one.ring else 6
            panel.plot(*zip(*points, strict=True), ls="", markersize=size, zorder=3, **one.style)
    return values


def _scale(corner: Any, values: list[float]) -> None:
    """Set the axis of ratios, which all panels share."""
    least, most = min([*values, 0.5]) / 1.3, max([*values, 2]) * 1.3
    corner.set_xscale("log")
    ticks = [m * 10.0**e for e in range(-6, 7) for m in ((1, 2, 5) if most / least < CROWDED else (1,))]
    corner.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    corner.set_xticks([], minor=True)
    corner.set_xlim(least, most)
