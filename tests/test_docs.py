"""The manual is whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from qemuspawner.hub.folders import FolderTraits
from qemuspawner.hub.form.terms import TermsTraits
from qemuspawner.hub.limits import LimitTraits
from qemuspawner.hub.mixin import QemuSpawnerMixin
from qemuspawner.hub.networks import NetworkTraits
from qemuspawner.hub.notices.mail import Mailer
from qemuspawner.hub.notices.notify import Notifies
from qemuspawner.hub.policies import PolicyTraits
from qemuspawner.hub.proposals.groups import GroupProposals
from qemuspawner.hub.proposals.http import HttpProposals
from qemuspawner.hub.proposals.source import ProposalSource
from qemuspawner.hub.proposals.toml import TomlProposals
from qemuspawner.hub.proposals.traits import ProposalTraits
from qemuspawner.hub.runs.runs import KeepsRuns
from qemuspawner.hub.slurm.offers import OffersCluster
from qemuspawner.hub.slurm.spawner import QemuSlurmSpawner
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.machine import Machine
from qemuspawner.session.routes import ROUTES
from qemuspawner.session.visitors import CloseCode
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec, SessionStatus

MANUAL = Path(__file__).parent.parent / "docs"

TRAITS = [
    name
    for kind in (
        PolicyTraits,
        ProposalTraits,
        NetworkTraits,
        LimitTraits,
        TermsTraits,
        FolderTraits,
        KeepsRuns,
        Notifies,
        Mailer,
        QemuSpawnerMixin,
        QemuSpawner,
        QemuSlurmSpawner,
        OffersCluster,
        ProposalSource,
        TomlProposals,
        GroupProposals,
        HttpProposals,
    )
    for name in sorted(kind.class_own_traits(config=True))
]


def rows(page: str, begin: str) -> list[int]:
    """The rows of a page's tables that begin so, each as the number of its bars."""
    lines = (MANUAL / page).read_text().splitlines()
    return [line.replace("\\|", "").count("|") for line in lines if line.startswith(f"| {begin} |")]


def keys(kind: type[msgspec.Struct] = Machine, prefix: str = "") -> Iterator[str]:
    """Every key of machine.toml, dotted."""
    for field in msgspec.structs.fields(kind):
        if field.name in ("id", "folder"):  # what the catalogue adds
            continue
        tables = [
            option
            for option in (field.type, *get_args(field.type))
            if isinstance(option, type) and issubclass(option, msgspec.Struct)
        ]
        if tables:
            yield from keys(tables[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("key", list(keys()))
def test_every_key_of_machine_toml_is_described(key: str) -> None:
    """In a row of a table: type, default, meaning and example."""
    assert rows("machines.md", f"`{key}`") == [6]


@pytest.mark.parametrize("trait", TRAITS)
def test_every_trait_is_described(trait: str) -> None:
    """In a row of a table: type, default and meaning."""
    assert rows("administering.md", f"`{trait}`") == [5]


@pytest.mark.parametrize("path", [route.path for route in ROUTES])
def test_every_route_of_a_session_is_described(path: str) -> None:
    """In a row of a table: method, who may, and answer."""
    assert rows("sessions.md", f"`{path}`" if path else "(empty)") == [5]


@pytest.mark.parametrize("field", SessionStatus.__struct_fields__)
def test_every_field_of_the_status_is_described(field: str) -> None:
    """In a row of the table of SessionStatus: type and meaning. SessionSpec has a few of the same names."""
    text = (MANUAL / "sessions.md").read_text().partition("\n## SessionStatus\n")[2].partition("\n## ")[0]

    assert f"\n| `{field}` | " in text


@pytest.mark.parametrize("field", SessionSpec.__struct_fields__)
def test_every_field_of_the_specification_is_described(field: str) -> None:
    """Below the name of its variable, some in one row."""
    text = (MANUAL / "sessions.md").read_text()
    table = text.partition(f"`{SPEC_VARIABLE}`")[2]

    assert any(f"`{field}`" in line.split("|")[1] for line in table.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("code", list(CloseCode))
def test_every_close_code_is_described(code: CloseCode) -> None:
    """In a row of a table: name and meaning."""
    assert rows("sessions.md", f"{code.value} | {code.name}") == [4]
