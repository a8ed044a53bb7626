"""The tables of a run on a GPU, from its JSON alone."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .cases import GPU_CASES, OPERATIONS, PRECISIONS, UNFOLD
from .gpu import OURS, is_algorithm
from .report import NEAR
from .text import markdown, number

NAMES = {"ieee": "float32", "tf32": "TF32", "float16": "float16", "bfloat16": "bfloat16"}
#: Time of a call on the host is for this case, whose work is none.
SMALL = "tiny"

Key = tuple[str, str, str]
#: What contenders took for a job.
Results = dict[str, dict[str, Any]]


def jobs_of(found: dict[str, Any]) -> dict[Key, Results]:
    """Index the results by (precision, case, operation), and then by contender."""
    jobs: dict[Key, Results] = {}
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


def names_of(found: dict[str, Any]) -> list[str]:
    """Name everyone who was timed: xconv, the other libraries, and xconv by each algorithm."""
    timed = {result["contender"] for result in found["results"]}
    present = [name for name in found["contenders"] if name in timed]
    return sorted(present, key=lambda name: (name != OURS, is_algorithm(name)))


def peers_of(found: dict[str, Any]) -> list[str]:
    """Name the other libraries that were timed."""
    return [name for name in names_of(found) if name != OURS and not is_algorithm(name)]


def best_of(of: Results) -> dict[str, Any] | None:
    """Find the fastest forced algorithm of a job."""
    return min((r for name, r in of.items() if is_algorithm(name)), key=lambda r: r["median"], default=None)


def over_best(of: Results) -> float | None:
    """Give the time of xconv's own choice as a multiple of the best forced algorithm's, in the same rounds."""
    best = best_of(of)
    return best["beside"] / best["median"] if best and best["beside"] else None


def over(of: Results, peer: str) -> float | None:
    """Give our time as a multiple of a peer's."""
    return of[OURS]["median"] / of[peer]["median"] if OURS in of and peer in of else None


def best_over(of: Results, peer: str) -> float | None:
    """Give the best forced algorithm's time as a multiple of a peer's."""
    best = best_of(of)
    return best["median"] / of[peer]["median"] if best and peer in of else None


def ratios_of(found: dict[str, Any]) -> dict[str, Callable[[Results], float | None]]:
    """List what is divided by what, with how to: for the head of a table."""
    peers = peers_of(found)
    ratios = {f"xconv ÷ {peer}": partial(over, peer=peer) for peer in peers}
    if any(is_algorithm(name) for name in names_of(found)):
        ratios["xconv ÷ its best"] = over_best
        ratios |= {f"its best ÷ {peer}": partial(best_over, peer=peer) for peer in peers}
    return ratios


def means(found: dict[str, Any], ratio: Callable[[Results], float | None]) -> dict[tuple[str, str], tuple[float, int]]:
    """Average a ratio by precision and operation, without the small case."""
    logs: dict[tuple[str, str], list[float]] = {}
    for (precision, case, operation), of in jobs_of(found).items():
        value = ratio(of)
        if value is not None and case != SMALL:
            logs.setdefault((precision, operation), []).append(math.log(value))
    return {key: (math.exp(sum(values) / len(values)), len(values)) for key, values in logs.items()}


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    parts = [_heading(found), _means(found), _judgement(found), _host(found)]
    for precision, name in NAMES.items():
        tables = [table for table in (_choices(found, precision), _times(found, precision)) if table]
        parts += [f"## {name}", *tables] if tables else []
    return "\n\n".join(part for part in [*parts, _remarks(found)] if part) + "\n"


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
        "for xconv and torch, by the wall clock for jax. The time of the host is that in which it issues a call: where "
        "it is not much less, one of the two waits for the other. Operands are random, and rotated through three times "
        "the L2 cache where they are not tiny. The error is the largest one against float64, relative to the largest "
        "element. GB/s counts every operand and result once, TFLOP/s the plain sum; the percentages are of the peaks "
        "above. The temporary memory is the peak of a call beside its result: of CuPy's pool, torch's allocator, or "
        "what XLA plans. A first call compiles what no contender of its process has compiled before. Algorithms are "
        "timed after the libraries, and compared with xconv's own choice in the same rounds."
    )
    rounds = f"{found['date']}, {found['rounds']} rounds" + (f", {found['seconds']} s" if "seconds" in found else "")
    return f"# GPU timings\n\n{rounds}.\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n{note}"


def _means(found: dict[str, Any]) -> str:
    by_ratio = {title: means(found, ratio) for title, ratio in ratios_of(found).items()}
    rows = []
    for precision, operation in dict.fromkeys(key for mean in by_ratio.values() for key in mean):
        cells = (mean.get((precision, operation)) for mean in by_ratio.values())
        row = [f"{number(mean[0])} ({mean[1]})" if mean else "-" for mean in cells]
        rows.append([NAMES[precision], OPERATIONS[operation].title, *row])
    text = (
        "Geometric means of times divided by times; in brackets, over how many cases. “Its best” is the fastest of "
        "xconv's algorithms, each asked for by name."
    )
    return f"{text}\n\n{markdown(['precision', 'operation', *by_ratio], rows, left=2)}" if rows else ""


def _judgement(found: dict[str, Any]) -> str:
    ratios = [ratio for of in jobs_of(found).values() if (ratio := over_best(of)) is not None]
    good = sum(ratio <= NEAR for ratio in ratios)
    text = f"xconv's own choice is within 10% of its best algorithm in {good} of {len(ratios)}."
    return text if ratios else ""


def _host(found: dict[str, Any]) -> str:
    jobs = {key: of for key, of in jobs_of(found).items() if key[:2] == ("ieee", SMALL)}
    names = [name for name in names_of(found) if any(name in of for of in jobs.values())]
    rows = []
    for (_, _, operation), of in jobs.items():
        cells = (f"{of[name]['host'] * 1e6:.1f}" if name in of else "-" for name in names)
        rows.append([OPERATIONS[operation].title, *cells])
    text = "Time of a small call on the host: µs."
    return f"{text}\n\n{markdown(['operation', *names], rows, left=1)}" if rows else ""


def _choices(found: dict[str, Any], precision: str) -> str:
    """Compare what xconv chose by itself with what can be asked for by name."""
    jobs = {key: of for key, of in jobs_of(found).items() if key[0] == precision and best_of(of)}
    names = [n for n in names_of(found) if is_algorithm(n) and any(n in of for of in jobs.values())]
    ratios, rows = ratios_of(found), []
    for (_, case, operation), of in jobs.items():
        best = best_of(of)
        assert best is not None
        chosen = of[OURS].get("algorithm", "-") if OURS in of else "-"
        cells = [case, OPERATIONS[operation].title, chosen, best["contender"].removeprefix(f"{OURS}-")]
        cells += [number(ratio(of)) for ratio in ratios.values()]
        rows.append(cells + [number(of[name]["median"] * 1e3) if name in of else "-" for name in names])
    head = ["case", "operation", "chosen", "best", *ratios, *(f"{name.removeprefix(f'{OURS}-')} ms" for name in names)]
    return f"Every algorithm that can serve:\n\n{markdown(head, rows, left=4)}" if rows else ""


def _times(found: dict[str, Any], precision: str) -> str:
    names, rows = names_of(found), []
    for (of_precision, case, operation), of in jobs_of(found).items():
        if of_precision != precision:
            continue
        fastest = min(result["median"] for result in of.values())
        for name in filter(of.__contains__, names):
            r = of[name]
            gb, of_copy, flop, of_product = shares(found, r)
            half = (r["q3"] - r["q1"]) / 2
            cells = [
                case,
                OPERATIONS[operation].title,
                _called(r),
                f"{number(r['median'] * 1e3)} ± {number(half * 1e3)}",
            ]
            cells += [number(r["host"] * 1e6), str(r.get("tiles", "-")), number(r["median"] / fastest)]
            cells += [f"{gb / 1e9:.0f}{_percent(of_copy)}"]
            cells += ["-" if operation in UNFOLD else f"{flop / 1e12:.1f}{_percent(of_product)}", f"{r['error']:.0e}"]
            cells += ["-" if r["temporary_bytes"] is None else f"{r['temporary_bytes'] / 2**20:.1f}"]
            rows.append([*cells, f"{r['first_s']:.2f}"])
    head = ["case", "operation", "contender", "ms", "host µs", "tiles", "÷ fastest", "GB/s", "TFLOP/s", "error"]
    head += ["temporary MiB", "first call s"]
    return f"Everyone:\n\n{markdown(head, rows, left=3)}" if rows else ""


def _called(result: dict[str, Any]) -> str:
    """Name a contender, and what it chose."""
    chosen = result["contender"] == OURS and "algorithm" in result
    return f"{OURS} ({result['algorithm']})" if chosen else str(result["contender"])


def _percent(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%})"


def _remarks(found: dict[str, Any]) -> str:
    cases = [f"{name}: {label}" for name, label in found["cases"].items()]
    refused = _grouped((f"{refusal['contender']}, {refusal['reason']}", refusal) for refusal in found["refused"])
    late = _grouped((", ".join(missed["contenders"]), missed) for missed in found["not_reached"])
    parts = [
        f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in (
            ("Cases", cases),
            ("Not timed", [*found["left_out"], *_failures(found)]),
            ("Refused", refused),
            ("Not reached in time", late),
        )
        if lines
    ]
    return "\n\n".join(parts)


def _failures(found: dict[str, Any]) -> list[str]:
    return _grouped((f"FAILED: {failure['contender']}, {failure['reason']}", failure) for failure in found["failures"])


def _grouped(said: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """List in few lines what is said of jobs: by text, by precision and by case; of other requests, by their name."""
    groups: dict[str, dict[str, dict[str, list[str]]]] = {}
    for text, of in said:
        precision, case = (NAMES[of["precision"]], of["case"]) if "case" in of else ("outside of jobs", of["request"])
        titles = groups.setdefault(text, {}).setdefault(precision, {}).setdefault(case, [])
        titles += [OPERATIONS[of["operation"]].title] if "case" in of else []
    return [
        f"{text}: " + "; ".join(f"{precision}, {_listed(cases)}" for precision, cases in by_precision.items())
        for text, by_precision in groups.items()
    ]


def _listed(cases: dict[str, list[str]]) -> str:
    return ", ".join(f"{case} ({', '.join(titles)})" if titles else case for case, titles in cases.items())


def summary(found: dict[str, Any]) -> str:
    """Say the main figures in a few lines."""
    lines = []
    for title, ratio in ratios_of(found).items():
        mean = means(found, ratio)
        for precision, name in NAMES.items():
            cells = [
                f"{OPERATIONS[o].title} {number(m)} ({count})" for (p, o), (m, count) in mean.items() if p == precision
            ]
            lines += [f"{name}, {title}: {', '.join(cells)}"] if cells else []
    lines += [judgement] if (judgement := _judgement(found)) else []
    lines += [f"not reached in time: {len(found['not_reached'])} jobs"] if found["not_reached"] else []
    return "\n".join([*lines, *_failures(found)])
