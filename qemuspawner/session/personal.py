"""What makes a desktop its user's own: a copy of a template is a different machine from its twins."""

from qemuspawner.session.guest import Guest
from qemuspawner.spec import SessionSpec


async def personalise(guest: Guest, spec: SessionSpec) -> None:
    """Tell the guest by its agent whose it is.

    Raises:
        VmError: The agent does not answer, or what it was told to do failed.
    """
