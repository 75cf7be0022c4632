"""Who a hub's user is inside a guest: name and numbers of an account, as the hub found them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# As useradd takes them; longer ones no utmp can hold.
NAME = r"^[a-z_][a-z0-9_-]{0,31}$"
# Below are a system's own accounts, which another system has under other names; above, 32 bits and "nobody".
LEAST_ID, LAST_ID = 1000, (1 << 31) - 1
_NOBODY = 65534

Name = Annotated[str, Meta(pattern=NAME)]
Id = Annotated[int, Meta(ge=LEAST_ID, le=LAST_ID)]
# Whether they may become root in the guest; "" is as the image has it.
Sudo = Literal["", "yes", "no"]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group that an account is in, beside its own."""

    name: Name
    gid: Id


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account without a password: who sees the screen was let in by the hub."""

    name: Name
    uid: Id
    gid: Id
    groups: Annotated[tuple[Group, ...], Meta(max_length=64)] = ()
    full_name: Annotated[str, Meta(max_length=200)] = ""  # "": the hub's name of the user
    language: Annotated[str, Meta(pattern=r"^([a-z]{2,3}(_[A-Z]{2})?)?$")] = ""  # "fr_FR"; "": the image's


def is_personal(number: int) -> bool:
    """Whether a uid or gid is a person's, rather than one of a system's own."""
    return LEAST_ID <= number <= LAST_ID and number != _NOBODY


def find_sudo(by_hub: Sudo, *, by_machine: bool) -> Sudo:
    """Who says it: the hub, else machine.toml, else the image."""
    return by_hub or ("yes" if by_machine else "")
