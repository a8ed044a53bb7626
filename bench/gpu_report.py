"""The tables and the plot of a run on a GPU, from its JSON alone."""

import math
from pathlib import Path
from typing import Any

from .cases import CONV, GPU_CASES, OPERATIONS, PRECISIONS, UNFOLD
from .text import markdown, number

OURS = "xconv"
NAMES = {"ieee": "float32", "tf32": "TF32", "float16": "float16", "bfloat16": "bfloat16"}
COLOURS = {"xconv": "#2a7f4f", "xconv-cudnn": "#7fbf9a", "torch": "#d1495b", "jax": "#2e6f95"}
#: Time of a call on the host is for this case, whose work is none.
SMALL = "tiny"

Key = tuple[str, str, str]


def jobs_of(found: dict[str, Any]) -> dict[Key, dict[str, dict[str, Any]]]:
    """Index the results by (precision, case, operation), and then by contender."""
    jobs: dict[Key, dict[str, dict[str, Any]]] = {}
    for result in found["results"]:
        key = (result["precision"], result["case"], result["operation"])
        jobs.setdefault(key, {})[result["contender"]] = result
    return jobs


def shares(found: dict[str, Any], result: dict[str, Any]) -> tuple[float, float | None, float, float | None]:
    """Rates that a result comes to, and their shares of the peaks: bytes per second, operations per second."""
    case, operation, precision = GPU_CASES[result["case"]], result["operation"], result["precision"]
    bytes_rate = case.elements(operation) * PRECISIONS[precision][1] / result["median"]
    flop_rate = case.flops(operation) / result["median"]
    copy, product = found["peaks"].get("copy"), found["peaks"].get(precision)
    return bytes_rate, copy and bytes_rate / copy, flop_rate, product and flop_rate / product


def means(found: dict[str, Any], peer: str) -> dict[tuple[str, str], tuple[float, int]]:
    """Average the ratios of our times to a peer's by precision and operation, without the small case."""
    logs: dict[tuple[str, str], list[float]] = {}
    for (precision, case, operation), of in jobs_of(found).items():
        if OURS in of and peer in of and case != SMALL:
            logs.setdefault((precision, operation), []).append(math.log(of[OURS]["median"] / of[peer]["median"]))
    return {key: (math.exp(sum(values) / len(values)), len(values)) for key, values in logs.items()}


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    parts = [_heading(found), _means(found), _host(found)]
    parts += [_times(found, precision) for precision in NAMES] + [_remarks(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(found: dict[str, Any]) -> str:
    device, host = found["machine"], found["host"]
    versions = {name: v for facts in found["contenders"].values() for name, v in facts["versions"].items()}
    peaks = [f"copy {found['peaks']['copy'] / 1e9:.0f} GB/s"] if found["peaks"].get("copy") else []
    peaks += [f"{NAMES[p]} product {r / 1e12:.0f} TFLOP/s" for p, r in found["peaks"].items() if p in NAMES and r]
    driver = " ".join(filter(None, (device.get("kernel_driver"), device["driver"])))
    cache = f"L2 {device['l2_bytes'] / 2**20:.0f} MiB"
    lines = [
        f"{device['device']}, compute capability {device['compute_capability']}, {cache}; driver {driver}",
        f"{host['cpu']}, {host['cores']} cores; {host['os']}; Python {host['python']}, {device['runtime']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"peaks, measured in the same run: {', '.join(peaks) or 'none'}",
        f"`{found['command']}`",
    ]
    note = (
        "A time is the median ± half the interquartile range over the rounds, of the mean of up to 50 calls; by events "
        "for xconv and torch, by the wall clock for jax. Operands are random, and rotated through three times the L2 "
        "cache where they are not tiny. The error is the largest one against float64, relative to the largest element. "
        "GB/s counts every operand and result once, TFLOP/s the plain sum; the percentages are of the peaks above. "
        "The temporary memory is the peak of a call beside its result: of CuPy's pool, of torch's allocator, and what "
        "XLA plans."
    )
    rounds = f"{found['date']}, {found['rounds']} rounds" + (f", {found['seconds']} s" if "seconds" in found else "")
    return f"# GPU timings\n\n{rounds}.\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n{note}"


def _means(found: dict[str, Any]) -> str:
    peers = [name for name in found["contenders"] if name != OURS]
    by_peer = {peer: means(found, peer) for peer in peers}
    keys = list(dict.fromkeys(key for mean in by_peer.values() for key in mean))
    rows = []
    for precision, operation in keys:
        cells = (by_peer[peer].get((precision, operation)) for peer in peers)
        row = [f"{number(mean[0])} ({mean[1]})" if mean else "-" for mean in cells]
        rows.append([NAMES[precision], OPERATIONS[operation].title, *row])
    head = ["precision", "operation", *(f"÷ {peer}" for peer in peers)]
    text = "Time of xconv ÷ time of its peer, geometric mean; in brackets, over how many cases."
    return f"{text}\n\n{markdown(head, rows, left=2)}" if rows else ""


def _host(found: dict[str, Any]) -> str:
    names = list(found["contenders"])
    rows = []
    for (precision, case, operation), of in jobs_of(found).items():
        if case == SMALL and precision == "ieee":
            cells = (f"{of[name]['host'] * 1e6:.1f}" if name in of else "-" for name in names)
            rows.append([OPERATIONS[operation].title, *cells])
    head = ["operation", *names]
    return f"Time of a small call on the host: µs.\n\n{markdown(head, rows, left=1)}" if rows else ""


def _times(found: dict[str, Any], precision: str) -> str:
    rows = []
    for (of_precision, case, operation), of in jobs_of(found).items():
        if of_precision != precision:
            continue
        fastest = min(result["median"] for result in of.values())
        for name, r in of.items():
            gb, of_copy, flop, of_product = shares(found, r)
            tera = "-" if operation in UNFOLD else f"{flop / 1e12:.1f}{_percent(of_product)}"
            memory = "-" if r["temporary_bytes"] is None else f"{r['temporary_bytes'] / 2**20:.1f}"
            half = (r["q3"] - r["q1"]) / 2
            time = f"{number(r['median'] * 1e3)} ± {number(half * 1e3)}"
            cells = [time, number(r["median"] / fastest), f"{gb / 1e9:.0f}{_percent(of_copy)}", tera]
            first = f"{r['first_s']:.2f}"
            rows.append([case, OPERATIONS[operation].title, name, *cells, f"{r['error']:.0e}", memory, first])
    head = [
        "case",
        "operation",
        "contender",
        "ms",
        "÷ fastest",
        "GB/s",
        "TFLOP/s",
        "error",
        "temporary MiB",
        "first call s",
    ]
    return f"## {NAMES[precision]}\n\n{markdown(head, rows, left=3)}" if rows else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%})"


def _remarks(found: dict[str, Any]) -> str:
    cases = [f"{name}: {label}" for name, label in found["cases"].items()]
    missing = [", ".join(job.values()) for job in found["not_reached"]]
    failed = [*found["left_out"], *(f"FAILED: {failure}" for failure in found["failures"])]
    failed += [f"not reached in time: {job}" for job in missing]
    parts = [
        f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in (("Cases", cases), ("Not timed", failed))
        if lines
    ]
    return "\n\n".join(parts)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw a panel per precision and operation: the ratios of our times to the peers', a row per case."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    ratios = _ratios(found)
    peers = [name for name in found["contenders"] if name != OURS]
    precisions = [p for p in NAMES if any(key[0] == p for key in ratios)]
    operations = [o for o in (*CONV, *UNFOLD) if any(key[2] == o for key in ratios)]  # the first column has every row
    rows, columns = max(1, len(precisions)), max(1, len(operations))
    cases = list(found["cases"])
    size = (2.2 + 2.6 * columns, 1.4 + rows * (0.9 + 0.24 * len(cases)))
    figure, panels = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, precision in enumerate(precisions):
        for column, operation in enumerate(operations):
            of = {
                (key[1], key[3]): ratio for key, ratio in ratios.items() if (key[0], key[2]) == (precision, operation)
            }
            panels[row, column].set_title(f"{OPERATIONS[operation].title}, {NAMES[precision]}", fontsize=10, loc="left")
            _panel(panels[row, column], of, cases, peers)
    corner = panels[0, 0]
    corner.set_xscale("log")
    limits = min([*ratios.values(), 0.5]) / 1.3, max([*ratios.values(), 2]) * 1.3
    ticks = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]
    corner.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    corner.set_xticks([], minor=True)
    corner.set_xlim(limits)
    corner.set_yticks(range(len(cases)), cases, fontsize=9)
    corner.set_ylim(len(cases) - 0.5, -0.5)
    handles = [plt.Line2D([], [], ls="", marker="o", color=COLOURS.get(peer)) for peer in peers]
    figure.legend(handles, [f"÷ {peer}" for peer in peers], loc="upper right", ncols=2, frameon=False, fontsize=11)
    title = f"Time of xconv ÷ time of its peer: {found['machine']['device']}"
    figure.text(0.01, 1 - 0.12 / size[1], title, fontsize=13, va="top")
    figure.supxlabel("left of 1 (shaded) xconv is faster", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / size[1]))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratios(found: dict[str, Any]) -> dict[tuple[str, str, str, str], float]:
    """Give our time as a multiple of a peer's, by (precision, case, operation, peer)."""
    return {
        (*key, peer): of[OURS]["median"] / of[peer]["median"]
        for key, of in jobs_of(found).items()
        for peer in of
        if OURS in of and peer != OURS
    }


def _panel(panel: Any, ratios: dict[tuple[str, str], float], cases: list[str], peers: list[str]) -> None:
    panel.set_visible(bool(ratios))
    panel.axvspan(1e-9, 1, color="#e8f3ec", zorder=0)
    panel.axvline(1, color="#222222", lw=1, zorder=1)
    panel.grid(color="#dddddd", lw=0.6, zorder=0)
    panel.tick_params(length=0, labelbottom=True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    for (case, peer), ratio in ratios.items():
        row = cases.index(case) + 0.2 * (peers.index(peer) - (len(peers) - 1) / 2)
        panel.scatter(ratio, row, s=26, color=COLOURS.get(peer), zorder=3)


def summary(found: dict[str, Any]) -> str:
    """Say the main figures in a few lines."""
    lines = [
        f"{NAMES[precision]} {OPERATIONS[operation].title}: {number(mean)} of {peer}'s time ({count} cases)"
        for peer in found["contenders"]
        for (precision, operation), (mean, count) in means(found, peer).items()
        if peer != OURS
    ]
    lines += [f"not reached in time: {len(found['not_reached'])} jobs"] if found["not_reached"] else []
    return "\n".join([*lines, *(f"FAILED: {failure}" for failure in found["failures"])])
