"""How Sphinx makes the manual: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from qemuspawner import __version__

project = "qemuspawner"
author = "the authors of qemuspawner"
release = version = __version__

extensions = ["myst_parser", "sphinxarg.ext", "screenshots"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]

# Pages link to headings as they are shown on code hosts, too.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "fieldlist"]
# The code in pages is for people; what is no whole program need not parse.
highlight_language = "none"

html_theme = "furo"
html_title = f"qemuspawner {version}"
html_favicon = "../share/static/favicon.svg"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
