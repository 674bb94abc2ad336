"""Settings of the manual: Sphinx with MyST pages; `make docs` builds it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
# Nothing is fetched while the manual is built.
os.environ["HF_HUB_OFFLINE"] = "1"

project = "Lamer-SSL for ESPnet"
author = "The Lamer-SSL for ESPnet developers"
copyright = f"2026, {author}"

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    # Of this folder.
    "constants",
    "equations",
    "references",
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

exclude_patterns = ["_build", "_extensions"]

# One page per package, written anew at each build.
apidoc_modules = [
    {
        "path": "../espnet2_lamer",
        "destination": "api",
        "module_first": True,
        # Packages have no __init__.py where it would say nothing.
        "implicit_namespaces": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
# Fields of a dataclass are described by its docstring once.
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_math_renderer = "equations"
html_copy_source = False
html_show_sourcelink = False
