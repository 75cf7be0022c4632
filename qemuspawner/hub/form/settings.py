"""Options that users have saved under a name, to start with them again."""

import json
from collections.abc import Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.form.fields import show
from qemuspawner.hub.form.options import RefusedOptionsError
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text

MAX_SETTINGS = 20
MAX_NAME = 60
# A script is the longest of options.
_MAX_BYTES = 128 * 1024


class Setting(Base):
    """Options under a name."""

    __tablename__ = "settings"

    user: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    options: Mapped[str]  # JSON


def list_settings(records: Records, *, user: str) -> dict[str, dict[str, object]]:
    """The user's saved options, by name and in the order of the names."""
    with records.session() as session:
        found = session.scalars(select(Setting).where(Setting.user == user))
        return {
            one.name: json.loads(one.options) for one in sorted(found, key=lambda one: one.name.casefold())
        }


def find_setting(records: Records, *, user: str, name: str) -> dict[str, object] | None:
    with records.session() as session:
        found = session.get(Setting, (user, name))
        return None if found is None else json.loads(found.options)


def expand_setting(records: Records, options: Mapping[str, object], *, user: str) -> Mapping[str, object]:
    """`options` with those that are saved under the name that its `setting` says; its own ones count more.

    Raises:
        RefusedOptionsError: Nothing is saved under this name.
    """
    if "setting" not in options:
        return options
    own = {name: value for name, value in options.items() if name != "setting"}
    name = options["setting"]
    found = find_setting(records, user=user, name=name) if isinstance(name, str) else None
    if found is None:
        raise RefusedOptionsError(
            {
                "setting": Text(
                    "The option 'setting' is {name}; you have saved no settings of this name.",
                    name=show(name),
                )
            }
        )
    return {**found, **own}


def save_setting(records: Records, *, user: str, name: str, options: Mapping[str, object]) -> None:
    """Save options, in the place of those that have this name.

    Raises:
        QemuSpawnerError: There are too many, or the name or the options cannot be kept.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise QemuSpawnerError(
            Text("The name of saved settings has one line of 1 to {most} characters.", most=MAX_NAME),
            hint=Text("Choose another one."),
        )
    text = json.dumps(dict(options))
    if len(text) > _MAX_BYTES:
        raise QemuSpawnerError(
            Text(
                "The settings have {count} bytes; at most {most} can be saved.",
                count=len(text),
                most=_MAX_BYTES,
            )
        )
    with records.session() as session:
        mine = session.scalar(select(func.count()).where(Setting.user == user, Setting.name != name)) or 0
        if mine >= MAX_SETTINGS:
            raise QemuSpawnerError(
                Text("You have {most} saved settings already; more are not allowed.", most=MAX_SETTINGS),
                hint=Text("Delete one of them."),
            )
        session.merge(Setting(user=user, name=name, options=text))


def delete_setting(records: Records, *, user: str, name: str) -> None:
    """Harmless where there is none of the name."""
    with records.session() as session:
        session.execute(delete(Setting).where(Setting.user == user, Setting.name == name))
