"""A script that becomes a session."""

import shlex
from collections.abc import Sequence

from qemuspawner.batch import JobDocument, write_document


def make_script(command: Sequence[str], document: JobDocument) -> str:
    """A script that becomes `command`, with the document on its descriptor 3.

    Engines signal the job's first process, so it has to be the session itself. No line of the document can
    end it: it is one line of JSON.
    """
    return f"#!/bin/sh\nexec {shlex.join(command)} --job 3 3<<'END'\n{write_document(document)}\nEND\n"
