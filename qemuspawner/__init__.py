"""JupyterHub spawner whose server is the desktop of a QEMU virtual machine."""

__version__ = "0.1.0"
