"""The table, the plot and the summary of a run, from its JSON alone."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import growth
from .cases import CONV, OPERATIONS
from .text import markdown as _markdown
from .text import number as _number

OURS = "xconv"
#: Above this load at the start, something else was running.
BUSY = 0.5
#: So near to the best forced algorithm, a choice is good.
NEAR = 1.1
TITLES = {name: OPERATIONS[name].title for name in (*CONV, "backward")}
MARKS = {"torch": ("o", "#d1495b"), "jax": ("s", "#2e6f95"), "blog": ("^", "#8d8d8d"), "scipy": ("D", "#e0a030")}

Results = dict[tuple[str, str, str], dict[str, Any]]


def results_of(found: dict[str, Any]) -> Results:
    """Index the results by (case, operation, contender)."""
    return {(r["case"], r["operation"], r["contender"]): r for r in found["results"]}


def peers_of(found: dict[str, Any]) -> list[str]:
    """Name the other libraries; contenders that are xconv with other settings have its name in front."""
    return [name for name in found["contenders"] if not name.startswith(OURS)]


def ratio(results: Results, case: str, operation: str, peer: str) -> float | None:
    """Time of xconv as a multiple of the peer's; None where one of them was not timed."""
    ours, theirs = results.get((case, operation, OURS)), results.get((case, operation, peer))
    return ours["median"] / theirs["median"] if ours and theirs else None


def geometric_mean(
    results: Results, cases: Iterable[str], operations: Iterable[str], peer: str
) -> tuple[float | None, int]:
    """Average the ratio over the cases that both were timed on, and count them."""
    ratios = [ratio(results, case, operation, peer) for case in cases for operation in operations]
    logs = [math.log(r) for r in ratios if r is not None]
    return (math.exp(sum(logs) / len(logs)), len(logs)) if logs else (None, 0)


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    parts = [heading(found, "CPU timings"), _ratios(found), _means(found), _times(found)]
    parts += [_choices(found), growth.table(found), remarks(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(found: dict[str, Any], title: str) -> str:
    """Write a title, and what the figures depend on: machine, versions and the command."""
    machine = found["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    versions = {name: v for facts in found["contenders"].values() for name, v in facts["versions"].items()}
    facts = [
        f"{machine['cpu']}, {machine['cores']} cores{f' ({caches})' if caches else ''}; {machine['os']}",
        f"Python {machine['python']}, {', '.join(f'{name} {version}' for name, version in versions.items())}",
        *(f"pools of threads, {name}: {_pools(found['contenders'][name])}" for name in (OURS, *peers_of(found))),
        f"load of the machine at the start: {machine['load']}{' (busy)' if (machine['load'] or 0) > BUSY else ''}",
        f"`{found['command']}`",
    ]
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    when = f"{found['date']}, {threads} for every contender, {found['rounds']} rounds."
    return f"# {title}\n\n{when}\n\n" + "\n".join(f"- {fact}" for fact in facts)


def beside(found: dict[str, Any], peer: str) -> str:
    """Write a row for every case: the three functions beside those of one peer."""
    results, rows = results_of(found), []
    for case in found["cases"]:
        cells = []
        for operation in CONV:
            ours = results.get((case, operation, OURS))
            cells += [_time(ours) if ours else "-", _number(ratio(results, case, operation, peer))]
        rows.append([case, found["remarks"].get(OURS, {}).get(case, "-"), *cells])
    head = ["case", "algorithm", *(cell for o in CONV for cell in (f"{OPERATIONS[o].title} ms", f"÷ {peer}"))]
    return _markdown(head, rows, left=2)


def _pools(facts: dict[str, Any]) -> str:
    pools = [
        " ".join(filter(None, (p["internal_api"], p["version"], p.get("architecture"), f"({p['num_threads']})")))
        for p in facts.get("threadpools", [])
    ]
    return ", ".join(pools) or "none that threadpoolctl knows"


def _ratios(found: dict[str, Any]) -> str:
    results, peers = results_of(found), peers_of(found)
    rows = []
    for case, label in found["cases"].items():
        for operation, title in TITLES.items():
            ours = results.get((case, operation, OURS))
            if ours is None:
                continue
            ratios = [_number(ratio(results, case, operation, peer)) for peer in peers]
            rate = found["flops"][case] * (2 if operation == "backward" else 1) / ours["median"] / 1e9
            rows.append([f"{case}: {label}", title, _time(ours), f"{rate:.0f}", *ratios, _error(ours), _memory(ours)])
    head = ["case", "operation", "xconv ms", "GFLOP/s", *(f"÷ {peer}" for peer in peers), "error", "temporary MiB"]

    def meters(kind: str) -> str:
        return ", ".join(name for name, facts in found["contenders"].items() if facts.get("meter") == kind) or "none"

    note = (
        "Times are medians ± half the interquartile range. “÷ torch” is the time of xconv divided by that of torch: "
        "below 1, xconv is faster. The error is the largest one against float64, relative to the largest element. "
        "The temporary memory is the peak of a first call beside its result: as NumPy allocates it for "
        f"{meters('tracemalloc')}, and by resident pages for {meters('resident pages')}, where memory that a library "
        "holds already is not seen. GFLOP/s counts the plain sum."
    )
    return f"{note}\n\n{_markdown(head, rows, left=2)}"


def _means(found: dict[str, Any]) -> str:
    results, peers = results_of(found), peers_of(found)
    groups = {"forward and both gradients": ("forward", "backward")} | {t: (o,) for o, t in TITLES.items()}
    rows = []
    for title, operations in groups.items():
        means = (geometric_mean(results, found["cases"], operations, peer) for peer in peers)
        rows.append([title, *(f"{_number(mean)} ({count})" if count else "-" for mean, count in means)])
    if not peers:
        return ""
    head = ["geometric mean of ratios", *(f"÷ {peer}" for peer in peers)]
    return f"In brackets, how many ratios are in the mean.\n\n{_markdown(head, rows, left=1)}"


def _times(found: dict[str, Any]) -> str:
    results, names = results_of(found), [OURS, *peers_of(found)]
    rows = []
    for case in found["cases"]:
        for operation, title in TITLES.items():
            cells = (results.get((case, operation, name)) for name in names)
            rows.append([case, title, *(f"{_time(r)}; {_error(r)}; {_memory(r)}" if r else "-" for r in cells)])
    return f"Every contender: ms; error; temporary MiB.\n\n{_markdown(['case', 'operation', *names], rows, left=2)}"


def choices(found: dict[str, Any]) -> list[tuple[str, str, str, float]]:
    """Compare the planner's choice: case, operation, the best forced contender, and the time relative to it.

    What is compared are forced runs, the chosen algorithm's too: two runs of one algorithm differ by more than a tenth.
    """
    results, compared = results_of(found), []
    chosen = found.get("remarks", {}).get(OURS, {})
    forced = [name for name in found["contenders"] if name.startswith(f"{OURS}-")]
    for case in found["cases"]:
        for operation in TITLES:
            times = {name: r["median"] for name in forced if (r := results.get((case, operation, name)))}
            ours = times.get(f"{OURS}-{chosen.get(case)}")
            if ours and len(times) > 1:  # there was a choice
                best = min(times, key=lambda name: times[name])
                compared.append((case, operation, best, ours / times[best]))
    return compared


def _judgement(found: dict[str, Any]) -> str:
    compared = choices(found)
    good = sum(relative <= NEAR for *_, relative in compared)
    return f"The planner's choice is within 10% of the best forced algorithm in {good} of {len(compared)}."


def _choices(found: dict[str, Any]) -> str:
    results, chosen = results_of(found), found.get("remarks", {}).get(OURS, {})
    forced = [
        name for name in found["contenders"] if name.startswith(f"{OURS}-") and any(k[2] == name for k in results)
    ]
    rows = []
    for case, operation, best, relative in choices(found):
        times = [_time(r) if (r := results.get((case, operation, name))) else "-" for name in forced]
        cells = [case, TITLES[operation], chosen.get(case, "-"), best.removeprefix(f"{OURS}-"), _number(relative)]
        rows.append([*cells, *times])
    if not rows:
        return ""
    head = ["case", "operation", "chosen", "best", "time ÷ best", *(f"{name} ms" for name in forced)]
    return f"{_judgement(found)}\n\n{_markdown(head, rows, left=4)}"


def remarks(found: dict[str, Any]) -> str:
    """List what was not timed, and why."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for omission in found["omitted"]:
        if omission["contender"] == "blog" and omission["operation"] in {"input_grad", "weight_grad"}:
            continue  # the columns of the table say so
        key = (omission["contender"], omission["case"], omission["reason"])
        groups.setdefault(key, []).append(TITLES[omission["operation"]])
    lines = [f"{name} on {case}, {', '.join(titles)}: {reason}" for (name, case, reason), titles in groups.items()]
    lines = [*found["left_out"], *(f"FAILED: {failure}" for failure in found["failures"]), *lines]
    return "Not timed:\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _time(result: dict[str, Any]) -> str:
    return f"{_number(result['median'] * 1e3)} ± {_number((result['q3'] - result['q1']) / 2 * 1e3 or None)}"


def _error(result: dict[str, Any]) -> str:
    return f"{result['error']:.0e}"


def _memory(result: dict[str, Any]) -> str:
    memory = result["temporary_bytes"]
    return "-" if memory is None else f"{memory / 2**20:.1f}" if memory >= 2**19 else f"{memory / 2**20:.3f}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the ratios: a panel per operation, a row per case, a mark per peer."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    results, cases = results_of(found), list(found["cases"])
    peers = [peer for peer in peers_of(found) if geometric_mean(results, cases, TITLES, peer)[1]]
    rows = [*(f"{case}\n{label}" for case, label in found["cases"].items()), "geometric mean"]
    height = 1.6 + 0.46 * len(rows)
    figure, panels = plt.subplots(1, len(TITLES), figsize=(15, height), sharex=True, sharey=True)
    for panel, (operation, title) in zip(panels, TITLES.items(), strict=True):
        panel.set_title(title, fontsize=12, loc="left")
        _panel(panel, results, cases, operation, peers)
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_yticks(range(len(rows)), rows, fontsize=9)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [plt.Line2D([], [], ls="", marker=MARKS[p][0], color=MARKS[p][1], markersize=8) for p in peers]
    names = [f"÷ {peer}" for peer in peers]
    figure.legend(
        handles, names, loc="upper right", ncols=len(names), frameon=False, fontsize=11, bbox_to_anchor=(0.995, 1)
    )
    figure.text(0.01, 1 - 0.12 / height, "Time of xconv ÷ time of its peer, on the CPU", fontsize=14, va="top")
    busy = " (busy with other things, too)" if (found["machine"]["load"] or 0) > BUSY else ""
    surroundings = f"{found['machine']['cpu']}, {found['threads']} threads{busy}"
    figure.supxlabel(f"left of 1 (shaded) xconv is faster   |   {surroundings}", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / height), w_pad=1.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Any, results: Results, cases: list[str], operation: str, peers: list[str]) -> None:
    """One operation: the ratios of every case, and their mean below a line."""
    panel.axvspan(1e-9, 1, color="#e8f3ec", zorder=0)
    panel.axvline(1, color="#222222", lw=1.2, zorder=1)
    panel.axhline(len(cases) - 0.5, color="#222222", lw=0.8, zorder=1)
    panel.grid(axis="both", color="#dddddd", lw=0.6, zorder=0)
    for offset, peer in enumerate(peers):
        marker, colour = MARKS[peer]
        ratios = [ratio(results, case, operation, peer) for case in cases]
        ratios.append(geometric_mean(results, cases, (operation,), peer)[0])
        points = [(r, row + 0.22 * (offset - (len(peers) - 1) / 2)) for row, r in enumerate(ratios) if r is not None]
        if points:
            panel.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=42, zorder=3)
    values = [r for c in cases for o in TITLES for p in peers if (r := ratio(results, c, o, p)) is not None]
    if values:
        panel.set_xlim(min(*values, 0.5) / 1.5, max(*values, 2) * 1.5)
    panel.tick_params(length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def summary(found: dict[str, Any]) -> str:
    """Say the main figures in a few lines."""
    results, lines = results_of(found), []
    for operation, title in (("forward", "forward"), ("backward", "gradients")):
        blog, torch = (ratio(results, "r50_56", operation, peer) for peer in ("blog", "torch"))
        facts = [f"{1 / blog:.1f} times faster than blog"] if blog else []
        facts += [f"{torch:.2f} of torch's time"] if torch else []
        if facts:
            lines.append(f"r50_56 {title}: {', '.join(facts)}")
    if tiny := results.get(("tiny", "forward", OURS)):
        lines.append(f"tiny forward, repeated: {tiny['median'] * 1e6:.1f} µs a call")
    if choices(found):
        lines.append(_judgement(found))
    for peer in peers_of(found):
        mean, count = geometric_mean(results, found["cases"], ("forward", "backward"), peer)
        if mean:
            lines.append(f"geometric mean of {count} ratios to {peer}: {_number(mean)}")
    if (load := found["machine"]["load"] or 0) > BUSY:
        lines.append(f"The machine was busy (load {load}): these figures are for a look, not for a claim.")
    return "\n".join([*lines, *(f"FAILED: {failure}" for failure in found["failures"])])
