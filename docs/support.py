"""Tries xconv with array libraries and writes ``docs/support.md``: ``python3 -m nox -s support``.

``python docs/support.py`` does the same with what the environment at hand has. Each library is tried in a process of
its own, on its default device, against NumPy's results.
"""

import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parent / "support.md"
#: Seconds for a library.
LIMIT = 300
#: The mark of a line that a child has for its parent.
MARK = "support: "


class Library(NamedTuple):
    """What to import, which packages to ask for a version, and how to bring an array to NumPy."""

    module: str
    packages: tuple[str, ...]
    to_numpy: Callable[[Any], Any] | None = None
    note: str = ""


LIBRARIES = {
    "NumPy": Library("numpy", ("numpy",)),
    "CuPy": Library("cupy", ("cupy-cuda13x", "cupy-cuda12x", "cupy"), note="imported only; it needs a GPU"),
    "PyTorch": Library("torch", ("torch",)),
    "JAX": Library("jax.numpy", ("jax",)),
    "Dask": Library("dask.array", ("dask",)),
    "array-api-strict": Library("array_api_strict", ("array-api-strict",)),
    "ndonnx": Library("ndonnx", ("ndonnx",), lambda a: a.unwrap_numpy()),
    "dpnp": Library("dpnp", ("dpnp",), lambda a: a.asnumpy()),
    "MLX": Library("mlx.core", ("mlx",)),
    "sparse": Library("sparse", ("sparse",), lambda a: a.todense() if hasattr(a, "todense") else a),
    "Cubed": Library("cubed", ("cubed",), lambda a: a.compute()),
}
NOTHING = "nothing"
FUNCTIONS = ("conv", "conv_input_grad", "conv_weight_grad", "conv_transpose", "im2col", "col2im")


def calls(make: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """The functions of xconv on small integers, whose sums are exact; `make` brings the operands to a library."""
    import numpy as np

    import xconv

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return make(rng.integers(-9, 10, shape).astype(np.float32))

    x, w, b, dy, cols = draw(2, 4, 9, 8), draw(6, 2, 3, 3), draw(6), draw(2, 6, 5, 4), draw(2, 4, 3, 3, 5, 4)
    z, v = draw(2, 6, 5, 4), draw(6, 2, 3, 3)
    options = {"stride": 2, "padding": "same", "groups": 2}
    return {
        "conv": lambda: xconv.conv(x, w, b, **options),
        "conv_input_grad": lambda: xconv.conv_input_grad(dy, w, (2, 4, 9, 8), **options),
        "conv_weight_grad": lambda: xconv.conv_weight_grad(dy, x, (6, 2, 3, 3), **options),
        "conv_transpose": lambda: xconv.conv_transpose(z, v, stride=2, padding=1, groups=2),
        "im2col": lambda: xconv.im2col(x, 3, stride=2, padding="same"),
        "col2im": lambda: xconv.col2im(cols, (9, 8), stride=2, padding="same"),
    }


def attempt(name: str) -> dict[str, str]:
    """For each function ``yes``, or what went wrong in a few words; or one reason why nothing could be tried."""
    import numpy as np

    library = LIBRARIES[name]
    try:
        xp = importlib.import_module(library.module)
        if library.note:
            return {NOTHING: library.note}
        found = calls(getattr(xp, "asarray", None) or xp.array)
    except Exception as error:  # noqa: BLE001
        return {NOTHING: f"not tried, as there are no arrays here: ``{words(error)}``"}
    to_numpy = library.to_numpy or np.asarray
    outcome, expected = {}, calls(lambda a: a)
    for function in FUNCTIONS:
        try:
            same = np.array_equal(np.asarray(to_numpy(found[function]())), expected[function]())
            outcome[function] = "yes" if same else "another result"
        except Exception as error:  # noqa: BLE001
            outcome[function] = words(error)
    return outcome


def words(error: Exception) -> str:
    """The kind of an error, and the beginning of what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:97]}…" if len(text) > 98 else f"{type(error).__name__}: {text}"


def child(name: str) -> dict[str, str]:
    """The outcome for a library, from a process of its own."""
    command = [sys.executable, __file__, "--try", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {NOTHING: f"no answer within {LIMIT} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    return {NOTHING: f"its process ended with status {done.returncode}"}


def versions(library: Library) -> str | None:
    """The version of the first of its packages that is installed."""
    for package in library.packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def page(outcomes: dict[str, dict[str, str] | None]) -> str:
    """The page of all libraries; None for one that is not installed."""
    import xconv

    head = ["library", "version", *(f"`{function}`" for function in FUNCTIONS)]
    rows, remarks = [], []
    for name, outcome in outcomes.items():
        if outcome is None:
            rows.append([name, "not installed", *("-" for _ in FUNCTIONS)])
            continue
        cells = ["-" if NOTHING in outcome else "yes" if outcome[f] == "yes" else "no" for f in FUNCTIONS]
        rows.append([name, versions(LIBRARIES[name]) or "-", *cells])
        if NOTHING in outcome:
            remarks.append(f"- **{name}**: {outcome[NOTHING]}")
            continue
        reasons: dict[str, list[str]] = {}
        for function, reason in outcome.items():
            reasons.setdefault(reason, []).append(f"`{function}`")
        remarks += [f"- **{name}**, {', '.join(names)}: ``{r}``" for r, names in reasons.items() if r != "yes"]
    lines = [" | ".join(row) for row in [head, ["---"] * len(head), *rows]]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"""# Other array libraries

xconv is tested with NumPy, array-api-strict, PyTorch, JAX and Dask. This table says what happens with these and others
that `pip` installed on one machine: small problems with stride 2, padding on one side and groups, whose results must be
equal to NumPy's. It is no promise for a library that xconv is not tested with.

{table}

{chr(10).join(remarks)}

Made by `python docs/support.py`, which `python3 -m nox -s support` runs, with xconv {xconv.__version__},
Python {platform.python_version()}, {platform.system()} {platform.machine()}.
"""


def main() -> None:
    outcomes: dict[str, dict[str, str] | None] = {}
    for name, library in LIBRARIES.items():
        outcomes[name] = child(name) if versions(library) else None
        sys.stderr.write(f"{name}: {outcomes[name]}\n")
    PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--try"]:
        sys.stdout.write(f"{MARK}{json.dumps(attempt(sys.argv[2]))}\n")
    else:
        main()
