"""A virtual machine as QEMU sees it."""
