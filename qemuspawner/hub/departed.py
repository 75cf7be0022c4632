"""What the hub has noted about users whom it does not know any more: all of it goes but their runs.

JupyterHub tells nobody when it deletes a user, and who gets the name next must find nothing of theirs.
"""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Table, delete, select, union

from qemuspawner.hub.records import Base, Records

# How long runs are kept is a setting of its own: the site's statistics are made of them.
_KEPT_TABLES = ("runs",)


def find_noted_users(records: Records) -> set[str]:
    """Everybody about whom there is something that goes with them."""
    query = union(*(select(_user_of(table)) for table in _tables()))
    with records.session() as session:
        return set(session.scalars(query))


def forget_users(records: Records, users: Iterable[str]) -> None:
    """Delete what is noted about these."""
    with records.session() as session:
        for user in users:
            for table in _tables():
                session.execute(delete(table).where(_user_of(table) == user))


def _tables() -> list[Table]:
    """Each with a column that names the user whom a row is about."""
    tables = Base.metadata.sorted_tables
    return [table for table in tables if "user" in table.columns and table.name not in _KEPT_TABLES]


def _user_of(table: Table) -> ColumnElement[str]:
    return table.columns["user"]
