"""The table, the plot and the summary of a run of `bench.planner`, from its JSON alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from .cases import CONV, OPERATIONS
from .geometries import Geometry
from .text import markdown, number

TITLES = {name: OPERATIONS[name].title for name in CONV}
COLOURS = {"forward": "#d1495b", "input_grad": "#2e6f95", "weight_grad": "#e0a030"}
#: A choice is good within the first of these times the best, and bad beyond the second.
GOOD, BAD = 1.25, 2
#: Rows of the table of the worst.
WORST = 20

Result = dict[str, Any]


def best_of(seconds: dict[str, float]) -> str:
    """Name the fastest algorithm of those that were forced."""
    return min((name for name in seconds if name != "auto"), key=lambda name: seconds[name])


def ratio_of(seconds: dict[str, float]) -> float:
    """The time by the planner's choice over that of the best."""
    return seconds["auto"] / seconds[best_of(seconds)]


def timed(found: dict[str, Any], part: str = "results") -> list[Result]:
    """What did not fail."""
    return [result for result in found[part] if "failed" not in result]


def ratios(found: dict[str, Any], *functions: str) -> list[float]:
    """The ratios of some functions, in order."""
    return sorted(ratio_of(result["seconds"]) for result in timed(found) if result["function"] in functions)


def share(values: list[float], bound: float) -> float:
    """The percentage that is within a bound."""
    return 100 * sum(value <= bound for value in values) / len(values)


def noise(found: dict[str, Any]) -> float:
    """By what percentage the time of a choice differs from that of the same algorithm forced: in 19 of 20, by less."""
    same = [r["seconds"]["auto"] / r["seconds"][r["chosen"]] for r in timed(found) if r["chosen"] in r["seconds"]]
    return sorted(100 * abs(ratio - 1) for ratio in same)[int(0.95 * len(same))] if same else 0.0


def summary(found: dict[str, Any]) -> str:
    """Say the main figures in one line, and what failed."""
    values = ratios(found, *TITLES)
    if not values:
        return "Nothing was timed."
    line = (
        f"{len(values)} choices on {found['backend']}: {share(values, GOOD):.0f} % within {GOOD} times the best, "
        f"{share(values, BAD):.0f} % within {BAD}; the worst takes {number(values[-1])} times as long."
    )
    return "\n".join([line, *(f"FAILED: {failure}" for failure in found["failures"])])


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    failures = "".join(f"\n- FAILED: {failure}" for failure in found["failures"])
    parts = [_heading(found), _shares(found), _algorithms(found), _worst(found), failures.strip(), _beside_scipy(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(found: dict[str, Any]) -> str:
    facts, versions = found["machine"], ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    caches = ", ".join(f"{level} {size}" for level, size in facts["caches"].items())
    return f"""# The planner's choices

{found["date"]}, by `{found["command"]}`.

- {facts["cpu"]}, {facts["cores"]} cores ({caches}); {facts["os"]}
- Python {facts["python"]}, {versions}; {found["threads"]} threads
- load of the machine at the start: {facts["load"]}

Random geometries, by `algorithm="auto"` and by every algorithm that can be forced, in turns. A time is the lower
quartile of some laps, each by the median of its calls; a ratio is the time of the choice over that of the best forced
algorithm. Two times of the same algorithm, chosen and forced, differ by less than {noise(found):.0f} % in 19 of 20."""


def _shares(found: dict[str, Any]) -> str:
    rows = []
    for title, functions in {**{title: (name,) for name, title in TITLES.items()}, "all": tuple(TITLES)}.items():
        if values := ratios(found, *functions):
            shares = [f"{share(values, bound):.1f} %" for bound in (GOOD, BAD)]
            rows.append([title, str(len(values)), *shares, number(values[-1])])
    return markdown(["function", "choices", f"within {GOOD}", f"within {BAD}", "worst"], rows, left=1)


def _algorithms(found: dict[str, Any]) -> str:
    results = timed(found)
    able = Counter(name for r in results for name in (*r["seconds"], *r["given_up"]) if name != "auto")
    chosen, best = Counter(r["chosen"] for r in results), Counter(best_of(r["seconds"]) for r in results)
    given_up = Counter(name for r in results for name in r["given_up"])
    rows = [[name, str(count), *(str(c[name]) for c in (chosen, best, given_up))] for name, count in able.most_common()]
    note = (
        "How often an algorithm can serve, is chosen, and is the best; and how often its first call was given up, "
        "as it took far longer than the best."
    )
    return f"{note}\n\n{markdown(['algorithm', 'can serve', 'chosen', 'best', 'given up'], rows, left=1)}"


def _worst(found: dict[str, Any]) -> str:
    rows = []
    for result in sorted(timed(found), key=lambda result: ratio_of(result["seconds"]), reverse=True)[:WORST]:
        seconds = result["seconds"]
        best = best_of(seconds)
        names = [Geometry.of(result).label, TITLES[result["function"]], result["chosen"], best]
        rows.append([*names, number(1e3 * seconds["auto"]), number(1e3 * seconds[best]), number(ratio_of(seconds))])
    head = ["geometry", "function", "chosen", "best", "chosen ms", "best ms", "ratio"]
    return f"The {len(rows)} worst:\n\n{markdown(head, rows, left=4)}"


def _beside_scipy(found: dict[str, Any]) -> str:
    if not found.get("scipy"):
        return ""
    rows, behind = [], 0
    for result in timed(found, "scipy"):
        ours, theirs = (result["seconds"][name] for name in ("auto", "scipy"))
        behind += ours > theirs
        names = [Geometry.of(result).label, TITLES[result["function"]], result["chosen"]]
        rows.append([*names, number(1e3 * ours), number(1e3 * theirs), number(ours / theirs)])
    note = (
        "Full convolutions beside loops of `scipy.signal.convolve` over the pairs of channels, and of `correlate` for "
        f"the gradients, on one thread as they come. In {behind or 'none'} of {len(rows)}, xconv takes longer."
    )
    head = ["geometry", "function", "chosen", "xconv ms", "scipy.signal ms", "ratio"]
    return f"## Beside scipy.signal\n\n{note}\n\n{markdown(head, rows, left=3)}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the ratios in order, a line per function."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5))
    for function, title in TITLES.items():
        if values := ratios(found, function):
            places = [100 * (i + 0.5) / len(values) for i in range(len(values))]
            label = f"{title}: {share(values, GOOD):.0f} % within {GOOD}, {share(values, BAD):.0f} % within {BAD}"
            axes.plot(places, values, color=COLOURS[function], lw=2, label=label)
    for bound in (GOOD, BAD):
        axes.axhline(bound, color="#222222", lw=0.8, ls="--", zorder=0)
        axes.annotate(f"{bound:g}", (0.5, bound), va="bottom", fontsize=10)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.set_xlim(0, 100)
    axes.set_xlabel("percentage of the geometries", fontsize=11)
    axes.set_ylabel("time of the choice ÷ time of the best algorithm", fontsize=11)
    axes.grid(which="major", color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=11)
    axes.set_title(f"What the planner chooses, on {found['backend']}", fontsize=13, loc="left")
    figure.text(0.99, 0.01, f"{found['machine']['cpu']}, {found['threads']} threads", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
