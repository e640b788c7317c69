"""Settings of the documentation site: `make docs` builds it into docs/_build/html, without a network."""

import sys
from pathlib import Path

from docutils.writers import html5_polyglot

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import evenflow  # noqa: E402  # which is found by that path

project = "Evenflow"
author = copyright = "The Evenflow developers"
version = release = evenflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery", "house"]
exclude_patterns = ["_build", "notebooks", "**/sg_execution_times.rst"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "notebooks",
    "gallery_dirs": "_notebooks",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
}

html_theme = "furo"
html_title = "Evenflow"
html_static_path = ["static", str(Path(html5_polyglot.__file__).with_name("math.css"))]
html_css_files = ["math.css", "house.css"]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "formula"
