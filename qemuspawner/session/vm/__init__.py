"""One virtual machine of a session: how it is prepared, what it is told, how it does, what is kept of it."""
