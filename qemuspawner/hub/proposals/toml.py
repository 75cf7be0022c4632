"""Proposals of a TOML file, whose every table is one, with its id as the name."""

import asyncio
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from traitlets import Unicode, default

from qemuspawner.hub.form.fields import show
from qemuspawner.hub.proposals.proposal import FIELDS, Asker, make_all, not_offered
from qemuspawner.hub.proposals.source import Loaded, ProposalSource, SourceError
from qemuspawner.texts import Text

_KEYS = set(FIELDS) - {"id"}
_MAX_FILE_BYTES = 8 * 1024 * 1024


class TomlProposals(ProposalSource):
    """Of a file; what is changed in it shows in the next form."""

    path = Unicode("/etc/qemuspawner/proposals.toml", help="The TOML file with the proposals.").tag(
        config=True
    )

    @default("cache")
    def _default_cache(self) -> int:
        return 0

    _read: tuple[tuple[int, ...], Loaded] | None = None  # what the file was, and said

    async def load(self, asker: Asker) -> Loaded:  # noqa: ARG002
        # It may lie on a file server that does not answer.
        return await asyncio.to_thread(self._load)

    def _load(self) -> Loaded:
        try:
            with Path(self.path).open("rb") as file:
                stat = os.fstat(file.fileno())
                version = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                if self._read is not None and self._read[0] == version:
                    return self._read[1]
                text = file.read(_MAX_FILE_BYTES + 1)
            if len(text) > _MAX_FILE_BYTES:
                raise ValueError(f"it has more than {_MAX_FILE_BYTES >> 20} MiB")
            document = tomllib.loads(text.decode())
        except (OSError, ValueError, RecursionError) as exc:
            raise SourceError(Text("The list of proposals cannot be read at the moment.")) from exc
        entries, unknown = _find_entries(document)
        proposals, problems = make_all(entries)
        loaded = Loaded(proposals=proposals, problems=(*unknown, *problems))
        self._read = version, loaded
        return loaded


def _find_entries(document: Mapping[str, object]) -> tuple[list[Mapping[str, object]], list[str]]:
    """The tables with their names as ids, and a sentence for each that is none of ours."""
    entries: list[Mapping[str, object]] = []
    problems: list[str] = []
    for name, table in document.items():
        if not isinstance(table, Mapping):
            problems.append(not_offered(show(name), Text("it is not a table")))
        elif unknown := table.keys() - _KEYS:
            why = Text("there is no key {key}", key=show(min(unknown)))
            problems.append(not_offered(show(name), why))
        else:
            entries.append({**table, "id": name})
    return entries, problems
