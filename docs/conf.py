"""Sphinx builds these pages from the docstrings, the Markdown files and the notebooks as they lie in the repository.

    python -m sphinx -W --keep-going -q -c docs . docs/_build/html

The source directory is the repository's root, so that README, CONTRIBUTING, notebooks and results are pages where they
lie and their links hold; nothing is copied. Needs the extra `docs`, no network and no kernel: outputs are the stored
ones.
"""

import importlib.util
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset
from sphinx.util.logging import getLogger

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "manual-backprop"
copyright = "the authors of manual-backprop, Apache-2.0"
root_doc = "docs/index"
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "plain_docstrings",
    "asked_of_code",
]
include_patterns = [
    "README*.md",
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    "docs/**.md",
    "notebooks/README.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".*", "**/.*", "docs/_*", "build", "dist", "manual_backprop", "reference", "tests"]
suppress_warnings = ["myst.header", "config.cache"]

# Docstrings are plain text (`plain_docstrings` sees to their markup), and f' is no quotation.
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
add_module_names = True
maximum_signature_line_length = 84
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
napoleon_custom_sections = [("Raises when used", "params_style")]
python_use_unqualified_type_names = True

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# MathJax comes as plain files inside a package, and only what a page loads is copied: TeX in, HTML and its fonts out.
MATHJAX = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"  # type: ignore
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_title = "manual-backprop"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_extra_path = ["_root"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
highlight_language = "none"  # a block without a language is what a program prints
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages."""
    if error is None:
        to = Path(app.outdir) / "_static" / "mathjax"
        for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions"):
            copy_asset(MATHJAX / part, (to / part).parent if (MATHJAX / part).is_file() else to / part, force=True)


def copy_pictures(app: Sphinx, error: Exception | None) -> None:
    """The <picture> elements of the pages are plain HTML to Sphinx, so it does not see to their files."""
    if error is None:
        copy_asset(HERE / "pictures", Path(app.outdir) / "docs" / "pictures", force=True)


def stay_local(app: Sphinx, error: Exception | None) -> None:
    """Warn of every script, style, font or picture that a page would fetch from elsewhere."""
    tag = r"""<(?:script|img|link|iframe|source|object|embed)\b[^>]*\b(?:src|href|data)=["']"""
    fetched = re.compile(rf"""(?:{tag}|url\(\s*["']?|@import\s+["'])(?:https?:)?//""")
    for path in [*Path(app.outdir).rglob("*.html"), *Path(app.outdir).rglob("*.css")]:
        for match in fetched.finditer(path.read_text(encoding="utf-8")):
            getLogger("local").warning("%s needs the network: %s", path.relative_to(app.outdir), match[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", copy_pictures)
    app.connect("build-finished", stay_local)
