"""What runs inside JupyterHub: the form, the limits, starting and following a session. Never touches QEMU."""
