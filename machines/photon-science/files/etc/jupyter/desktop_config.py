# The server of notebooks that is reached through the hub; one that a user starts in the desktop is not meant.
from pathlib import Path

c = get_config()  # noqa: F821 - Jupyter's
c.NotebookApp.ip = "0.0.0.0"  # noqa: S104 - no guest reaches another
c.NotebookApp.port = 8888
c.NotebookApp.port_retries = 0
c.NotebookApp.token = ""
c.NotebookApp.allow_remote_access = True
c.NotebookApp.notebook_dir = "/home/user"
prefix = Path("/etc/jupyter/prefix")
if prefix.exists():
    c.NotebookApp.base_url = prefix.read_text().strip()
