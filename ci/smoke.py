"""Every public function in every dtype and both layouts beside NumPy, each group in a process of its own."""

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .checks import GROUPS, Checks
from .place import Place
from .results import save

Row = dict[str, Any]
#: Seconds without which no group begins.
LEAST = 5
BAD = ("wrong", "error")


def run(seconds: float, jobs: int) -> int:
    """All groups within some seconds, so many at a time; 1 where a check has found something."""
    end, rows = time.monotonic() + seconds, []
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(lambda group: child(group, end), GROUPS):
            rows += found
            save("smoke.json", rows)
    for row in rows:
        if row["state"] in BAD:
            print(row["state"].upper(), row["group"], row["check"], row.get("detail", "")[-700:], flush=True)
    print(json.dumps(Counter(row["state"] for row in rows)))
    return int(any(row["state"] in BAD for row in rows))


def child(group: str, end: float) -> list[Row]:
    """What the process of a group says until a time."""
    left = end - time.monotonic()
    if left < LEAST:
        return [{"group": group, "check": "all", "state": "not reached"}]
    command = [sys.executable, "-m", "ci.gpu", "smoke-group", "--group", group]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            text, error = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            text, error = process.communicate()
            error += "\nstopped: no time left"
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if process.returncode:
        detail = f"status {process.returncode}: {error[-1500:]}"
        rows.append({"group": group, "check": "process", "state": "error", "detail": detail})
    return rows


def run_group(group: str) -> None:
    """Print a line of JSON for every check of a group."""
    for row in Checks(Place()).rows(group):
        print(json.dumps(row), flush=True)
