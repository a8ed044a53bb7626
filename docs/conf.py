"""Configuration of Sphinx. ``python3 -m nox -s docs`` builds the pages."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sphinx.application import Sphinx

import xconv

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "xconv"
author = "The xconv developers"
project_copyright = author
version = release = xconv.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included file begins with the heading level that it has by itself

autosummary_generate = False
autodoc_typehints = "none"
add_module_names = False
numpydoc_show_class_members = False

copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = False

html_theme = "pydata_sphinx_theme"
html_title = "xconv"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"quickstart": [], "gallery": [], "benchmarks": []}

# The bridges are documented where they are; what they bridge to need not be installed.
BRIDGES = find_spec("xconv.interop") is not None
if not BRIDGES:
    exclude_patterns.append("reference/interop.md")
autodoc_mock_imports = ["torch", "jax", "autograd"]

# Every public name has its place in the reference.
_reference = "\n".join(page.read_text() for page in (HERE / "reference").glob("*.md"))
if _missing := [name for name in xconv.__all__ if f":: xconv.{name}\n" not in _reference]:
    msg = f"not in docs/reference: {', '.join(_missing)}"
    raise ValueError(msg)

# A page may include the table of a benchmark that has not been run: it is empty then.
_generated = HERE / "_generated"
_generated.mkdir(exist_ok=True)
for _name in ("cpu", "gpu-nvidia-h200", "ndimage", "pairs", "bridges", "fuzz", "soak"):
    _table = ROOT / "bench" / "results" / f"{_name}.md"
    (_generated / f"{_name}.md").write_text(_table.read_text() if _table.exists() else "")


def escape_stars(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """The stars of shapes such as ``(n, c, *size)`` begin no emphasis; within literals they stay as they are."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<=, )\*(?=\w)", r"\*", part) for part in parts[::2]]
        lines[i] = "``".join(parts)


#: The classes of plans, in whichever module they are.
_plan = xconv.plan(np.ones((1, 1, 1)), np.ones((1, 1, 1)))
PLANS = {"{Plan}": type(_plan), "{FunctionPlan}": type(_plan.forward)}


def prepare(_app: Sphinx, page: str, source: list[str]) -> None:
    """The line that ends a doctest need not be seen; and what pages cannot know is put in."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")
    if page == "reference/plans":
        for name, kind in PLANS.items():
            source[0] = source[0].replace(name, f"{kind.__module__}.{kind.__qualname__}")
    if page == "reference/index" and not BRIDGES:
        source[0] = source[0].replace("\ninterop\n", "\n")


def setup(app: Sphinx) -> None:
    """Run `escape_stars` after numpydoc, which makes reStructuredText of the docstrings."""
    app.connect("autodoc-process-docstring", escape_stars, priority=900)
    app.connect("source-read", prepare)
