"""A script that becomes a session."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath


def make_script(command: Sequence[str], document: PurePath) -> str:
    """A script that becomes `command`, with the file `document` on its descriptor 3 and nowhere else.

    Engines store scripts, some where every account reads them, so nothing that is secret stands in it. They
    signal the job's first process, so that has to be the session itself.
    """
    path = shlex.quote(str(document))
    return f"#!/bin/sh\nexec 3<{path} && rm -f -- {path} && exec {shlex.join(command)} --job 3\n"
