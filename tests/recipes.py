"""The text of machines that are built."""


def recipe(name: str, *more: str, packages: str = '"linux-image-amd64"') -> str:
    """A machine.toml; `more` are further lines of its table [build]."""
    lines = "".join(f"{line}\n" for line in more)
    return f"""
name = "{name}"
firmware = "direct"
[image]
file = "disk.qcow2"
format = "qcow2"
kernel = "vmlinuz"
[build]
suite = "bookworm"
packages = [{packages}]
{lines}"""
