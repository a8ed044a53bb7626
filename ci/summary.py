"""The main figures of all parts, as text."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.cases import GPU_CASES, PRECISIONS, UNFOLD

from .results import folder, read

#: Lines of a kind, at most.
MOST = 12


def run(more: list[Path]) -> None:
    """Print it; `more` are reports of pytest that lie elsewhere."""
    for line in (*environment(), *smoke(), *reports([*sorted(folder().glob("*.xml")), *more]), *timings()):
        print(line)


def environment() -> Iterator[str]:
    """The device and its rates."""
    found = read("environment.json")
    if found:
        rates = {kind: f"{rate / 1e12:.3g}" for kind, rate in found["rates"].items() if rate}
        yield f"{found['device']}; 10^12 bytes, or operations, per second: {rates}"
        host = {name: f"{1e6 * seconds:.1f}" for name, seconds in found.get("host_s", {}).items()}
        yield f"us of a call on the host: {host}"


def smoke() -> Iterator[str]:
    """How many checks ended how, and what was found."""
    rows = read("smoke.json") or []
    states = [row["state"] for row in rows]
    yield f"smoke: { {state: states.count(state) for state in sorted(set(states))} }"
    for row in [row for row in rows if row["state"] in {"wrong", "error"}][:MOST]:
        detail = " ".join(row.get("detail", "").split())
        told = detail[-160:] if row["check"] == "process" else detail[:160]  # what it died of stands last
        yield f"   {row['state']} {row['group']} | {row['check']} | {told}"


def reports(paths: list[Path]) -> Iterator[str]:
    """What pytest says: failures by their reason, then skips by theirs."""
    for path in paths:
        with suppress(ET.ParseError, OSError):
            for suite in ET.parse(path).getroot().iter("testsuite"):
                counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped", "time")}
                yield f"{path.stem}: {counts}"
                for tags in ({"failure", "error"}, {"skipped"}):
                    yield from _reasons(suite, tags)


def _reasons(suite: Any, tags: set[str]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for case in suite.iter("testcase"):
        for child in case:
            if child.tag in tags:
                reason = (child.get("message") or "").partition("\n")[0][:160]
                reasons.setdefault(reason, []).append(case.get("name") or "")
    for reason, names in list(reasons.items())[:MOST]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"   {names[0]}{others} | {reason}"


def timings() -> Iterator[str]:
    """Microseconds on the device and on the host, beside the best of the algorithms and the best of the others."""
    rows, found = read("timings.json") or [], read("environment.json") or {}
    timed: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "device_s" in row:
            timed.setdefault((row["precision"], row["case"], row["operation"]), {})[row["who"]] = row
    yield "us on the device/host of xconv, the best of its algorithms, and the best of the others; the last two's ratio"
    for (precision, case, operation), of in timed.items():
        cells = [f"{name} {1e6 * row['device_s']:.0f}/{1e6 * row['host_s']:.0f}" for name, row in _shown(of)]
        ours, theirs = _best(of, ours=True), _best(of, ours=False)
        if ours and theirs:
            cells.append(f"{of[ours]['device_s'] / of[theirs]['device_s']:.2f}")
        if operation in UNFOLD and "xconv" in of and (copy := found.get("rates", {}).get("copy")):
            moved = GPU_CASES[case].elements(operation) * PRECISIONS[precision][1]
            cells.append(f"{moved / of['xconv']['device_s'] / copy:.0%} of the copy rate")
        yield f"{precision:8} {case:14} {operation:11} {'; '.join(cells)}"
    failed = [row for row in rows if "failed" in row]
    for row in failed[:MOST]:
        yield f"   {row['precision']} {row['case']} {row['operation']} {row['who']} | {row['failed'][:160]}"


def _best(of: dict[str, dict[str, Any]], *, ours: bool) -> str | None:
    names = [name for name in of if name.startswith("xconv") == ours]
    return min(names, key=lambda name: of[name]["device_s"], default=None)


def _shown(of: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    names = ("xconv" if "xconv" in of else None, _best(of, ours=True), _best(of, ours=False))
    for name in dict.fromkeys(names):
        if name is not None:
            yield name, of[name]
