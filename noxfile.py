#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The project's chores: ``nox -l`` lists them, ``nox -s NAME`` runs one in an environment of its own."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
#: What CUDA is for: run by `kernels` and `gpu`, and not by `tests`.
CUDA = "xconv/backends/cupy"
#: Makes cuDNN's graphs. What it depends on are kernels of its own, which nothing here runs.
FRONTEND = "nvidia-cudnn-frontend==1.32.*"
#: The bridges to PyTorch, JAX and autograd: run by `interop`, and not by `tests`.
BRIDGES = "xconv/interop"
#: What these run of the backends, and NumPy does not.
JAX = "xconv/backends/jax/*"
#: Pages of the documentation whose examples need what `interop` installs.
WITH_OTHERS = ("from-torch.md", "from-sigpy.md")
#: Files of tests in which the array library plays no role.
WITHOUT_A_LIBRARY = ("bench", "ci", "dask", "geometry", "overhead", "package", "sums", "threads")
#: What `support` tries to install beside NumPy.
LIBRARIES = (
    *("array-api-strict", "torch", "jax", "dask[array]", "cupy-cuda13x"),
    *("ndonnx", "onnxruntime", "dpnp", "mlx[cpu]", "sparse", "cubed"),
)


def install(session: nox.Session, *groups: str, extra: str = "") -> None:
    """The package, as a user gets it, and dependency groups of pyproject.toml."""
    session.install(f".{extra}", *nox.project.dependency_groups(PROJECT, *groups))


def covered(session: nox.Session, *tests: str, what: str) -> None:
    """Run these tests; all branches of `what`, an option of ``coverage report``, must be run."""
    session.run("coverage", "erase")
    session.run("pytest", *tests, "--cov", "--cov-report=", "--cov-fail-under=0", *session.posargs)
    session.run("coverage", "report", what)


def away(session: nox.Session, *options: str) -> None:
    """The test suite where there is no `xconv` folder, so that what is installed is tested and nothing else."""
    folder = Path(session.create_tmp(), "away")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tests", "bench", "ci", "examples"):
        shutil.copytree(name, folder / name)
    for name in ("pyproject.toml", "README.md", "noxfile.py"):
        shutil.copy(name, folder)
    with session.chdir(folder):
        session.run("pytest", *options)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite with NumPy and array-api-strict, and the coverage of it."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "test"))
    covered(session, "--numprocesses=auto", what=f"--omit={CUDA}/*,{JAX},{BRIDGES}/*")


@nox.session
def kernels(session: nox.Session) -> None:
    """CuPy without a GPU: the CUDA kernels compiled, run on the CPU, and called as on a device."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "kernels"))
    session.install("--no-deps", FRONTEND)
    names = ("fuzz", "conv", "pool", "classic", "plan", "winograd", "algorithms", "tuning")
    files = [f"tests/test_{name}.py" for name in names]
    options = ("--backend=cupy-on-host", "--numprocesses=auto")
    covered(session, "tests/kernels", *files, *options, what=f"--include={CUDA}/*")


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """The test suite with CuPy on a CUDA device (`nox -s gpu -- --cuda=12` for CUDA 12)."""
    args = [argument for argument in session.posargs if argument != "--cuda=12"]
    extra = "[cuda12]" if len(args) < len(session.posargs) else "[cuda13,cudnn]"
    install(session, "test", extra=extra)
    session.run("pytest", "--backend=cupy", "-m", "not alone", *args)
    one_by_one = (*args, "-m", "alone", "--numprocesses=0")
    session.run("pytest", "--backend=cupy", *one_by_one, success_codes=[0, 5])  # 5: none of these were asked for
    if shutil.which("compute-sanitizer"):  # a part of the CUDA toolkit
        check = ("compute-sanitizer", "--tool=memcheck", "--error-exitcode=9", "--target-processes=all")
        some = ("tests/test_gpu.py", "-k", "same_bits or numpy_gets or any_order", "--no-pool")
        session.run(*check, "python", "-m", "pytest", "--backend=cupy", *some, external=True)
        env = {"PYTHON": "python", "OUT": str(Path(session.create_tmp(), "gpu-out"))}
        session.run("bash", "ci/gpu.sh", "memcheck", "racecheck", external=True, env=env)  # every kernel, by two tools


@nox.session(default=False)
def interop(session: nox.Session) -> None:
    """The test suite with PyTorch, JAX at both of its precisions, and Dask; the bridges, all covered, and sigpy."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "test", "interop"))
    bridges = [f"tests/test_interop_{name}.py" for name in ("torch", "jax", "autograd", "sigpy")]
    asked = ("--backend=torch", "--backend=jax64", "--backend=numpy", "--doctest-modules", BRIDGES)
    covered(session, *bridges, *asked, "--numprocesses=auto", what=f"--include={JAX},{BRIDGES}/*")
    session.run("python", "examples/layers.py")
    # What takes no library has run with NumPy, but for the benchmark's peers.
    left_out = [f"--ignore-glob=*test_{name}*" for name in ("interop", *WITHOUT_A_LIBRARY)]
    session.run("pytest", "--backend=torch", *left_out, "--numprocesses=auto", *session.posargs)
    session.run("pytest", "tests/test_bench.py", "-k", "peers_compute or jax_is_asked", "--numprocesses=auto")
    # JAX compiles every new shape, so each of its precisions runs what is worth it there.
    chosen = {
        "jax64": ("jax", "fuzz", "conv", "classic", "plan", "tuning", "pool"),
        "jax": ("jax", "algorithms", "winograd", "fourier"),
        "dask": ("conv", "classic", "errors", "pool"),  # random geometries in random chunks are in test_dask
    }
    for backend, names in chosen.items():
        files = [f"tests/test_{name}.py" for name in names]
        session.run("pytest", f"--backend={backend}", "--numprocesses=auto", *files, *session.posargs)
    session.run("pytest", "--doctest-glob=*.md", *(f"docs/{page}" for page in WITH_OTHERS))


@nox.session
def doctests(session: nox.Session) -> None:
    """The examples in the docstrings, in the README and in the documentation."""
    install(session, "test")
    # They cannot be imported without CuPy, PyTorch, JAX and autograd.
    without = [f"--ignore={file}" for file in (CUDA, BRIDGES)]
    session.run("pytest", "--doctest-modules", "--doctest-glob=*.md", *without, "xconv", "README.md", *session.posargs)
    pages = [str(page) for page in Path("docs").glob("*.md") if page.name not in WITH_OTHERS]
    session.run("pytest", "--doctest-glob=*.md", *pages, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in docs/_build/html; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-E", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session(default=False)
def support(session: nox.Session) -> None:
    """Try other array libraries, as far as they can be installed, and write docs/support.md."""
    install(session)
    for library in LIBRARIES:
        session.run("python", "-m", "pip", "install", "--quiet", library, success_codes=[0, 1])
    session.run("python", "docs/support.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint, types, the direction of imports, and the review of the repository."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")
    session.run("sp-repo-review", ".")


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Train a small network on handwritten digits, filter a photograph, and reconstruct a magnetic resonance image."""
    install(session, "examples")
    session.run("python", "-m", "xconv")
    session.run("python", "examples/digits.py", *session.posargs)
    session.run("python", "examples/photo.py")
    session.run("python", "examples/mri.py")


@nox.session(default=False)
def large(session: nox.Session) -> None:
    """Convolve an image of 4 GiB on Dask workers of 1 GiB each, of which one is killed (some minutes)."""
    install(session, "cluster", extra="[dask]")
    session.run("python", "examples/large.py", *session.posargs, env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """50,000 geometries against plain loops (some minutes)."""
    install(session, "test")
    table = "--fuzz-table=bench/results/fuzz.md"
    session.run("pytest", "tests/test_fuzz.py", "--hypothesis-profile=fuzz", "--backend=numpy", table, *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Ten minutes of calls of all kinds from 8 threads: every result is compared, and memory must not grow."""
    install(session, "test", "interop")
    session.run("python", "tests/soak.py", "--table=bench/results/soak.md", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The benchmark against PyTorch, JAX and others (some minutes; leave the machine alone); with --gpu on a GPU."""
    install(session, "bench-gpu" if "--gpu" in session.posargs else "bench")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The test suite with the oldest versions of what xconv depends on."""
    oldest = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    install(session, "test")
    session.install(*oldest)
    away(session, "--backend=numpy", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """The sdist and the wheel, a look at their metadata, and the test suite with each of them."""
    session.install("build", "twine", *nox.project.dependency_groups(PROJECT, "test"))
    made = Path(session.create_tmp(), "dist")
    shutil.rmtree(made, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(made))
    files = sorted(map(str, made.iterdir()))
    session.run("twine", "check", "--strict", *files)
    for file in files:
        session.install("--force-reinstall", "--no-deps", file)
        session.install(file)
        away(session, "--backend=numpy", "--numprocesses=auto", *session.posargs)


if __name__ == "__main__":
    nox.main()
