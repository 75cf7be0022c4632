"""The directive `screenshot`: a picture that the browser tests have made, where they have run.

They are made anew by each run of the tests and are in no repository, so the manual is built without them too.
"""

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parent.parent.parent / "screenshots"


class Screenshot(SphinxDirective):
    """`screenshots/NAME.png`, with a text for who does not see it."""

    required_arguments = 1
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        path = FOLDER / f"{self.arguments[0]}.png"
        self.env.note_dependency(path)
        if not path.is_file():
            return []
        page = Path(self.env.doc2path(self.env.docname))
        uri = Path("../" * (len(page.relative_to(self.env.srcdir).parts) - 1), "../screenshots", path.name)
        return [nodes.figure("", nodes.image(uri=str(uri), alt=self.options["alt"]))]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("screenshot", Screenshot)
    return {"parallel_read_safe": True}
