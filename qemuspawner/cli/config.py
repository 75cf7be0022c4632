"""`qemuspawner config`: a commented jupyterhub_config.py for this host, to be looked over and kept."""

import os
import pwd
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.site import USUAL_ACCOUNT, find_slurm
from qemuspawner.errors import HostError, printable
from qemuspawner.gpus import find_gpus
from qemuspawner.machines.catalogue import load_all_machines, missing_files
from qemuspawner.paths import EXAMPLE_MACHINES, StatePaths
from qemuspawner.qemu.host import find_own_architecture, find_qemu, kvm_works
from qemuspawner.qemu.network import check_network
from qemuspawner.units import render_mib
from qemuspawner.vfio import find_obstacles

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_command(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("config", help="print a commented jupyterhub_config.py for this host")
    parser.set_defaults(command=print_config)


def print_config(_arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    parts = (_head(), _spawner(state, folders), _host(state), _gpus(), _slurm(), _people())
    print("\n\n".join("\n".join(part) for part in parts))
    return 0


def _head() -> Iterator[str]:
    yield '"""JupyterHub with desktops, as `qemuspawner config` found this host; see the manual."""'
    yield ""
    yield "from qemuspawner import paths, scopes, staff"
    yield ""
    yield "c = get_config()  # noqa: F821"


def _spawner(state: StatePaths, folders: list[Path]) -> Iterator[str]:
    yield "# The spawner, and its pages."
    yield 'c.JupyterHub.spawner_class = "qemu"'
    yield "c.JupyterHub.template_paths = [str(paths.TEMPLATES)]"
    yield f"c.QemuSpawner.state_dir = {str(state.root)!r}"
    if folders == [EXAMPLE_MACHINES]:
        yield "# The machines that come with qemuspawner; your own are added on the hub, or by the command."
        yield "c.QemuSpawner.machines = [str(paths.EXAMPLE_MACHINES)]"
    else:
        yield f"c.QemuSpawner.machines = {list(map(str, folders))!r}"
    ready = [one.id for one in load_all_machines(state, folders).machines.values() if not missing_files(one)]
    yield f"# With an image at this moment: {', '.join(ready) or 'none; see `qemuspawner machines list`'}."
    yield ""
    yield "# Desktops live on while the hub is restarted; everybody may have some, each with a name."
    yield "c.JupyterHub.cleanup_servers = False"
    yield "c.JupyterHub.allow_named_servers = True"
    yield "c.JupyterHub.named_server_limit_per_user = 3"


def _host(state: StatePaths) -> Iterator[str]:
    yield "# This host."
    yield from _account()
    yield from _acceleration(state)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    yield f"# Of {render_mib(total)} this much is never a desktop's."
    yield f"c.QemuSpawner.memory_reserve = {str(render_mib(max(1024, total // 16 // 256 * 256)))!r}"
    try:
        check_network()
        yield "# Guests can have networks here: what machines reach that do not say it themselves."
        yield 'c.QemuSpawner.network = "none"  # or "internet": that, less this host, the hub and the site'
    except HostError as exc:
        yield f"# Guests have no network here: {printable(exc.message)}"
        yield f"# {printable(exc.hint)}"
        yield '# c.QemuSpawner.network = "internet"'


def _account() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "# A hub that is not root runs sessions as its own account."
        yield 'c.QemuSpawner.run_as = ""'
        return
    yield "# Sessions never run as root. This account has no rights, no home and no shell:"
    try:
        pwd.getpwnam(USUAL_ACCOUNT)
    except KeyError:
        yield "# it is missing yet; `qemuspawner doctor` says how to make it."
    yield f'c.QemuSpawner.run_as = "{USUAL_ACCOUNT}"  # or "{{username}}": each user\'s own'


def _acceleration(state: StatePaths) -> Iterator[str]:
    try:
        works = kvm_works(find_qemu(find_own_architecture()), state.probes)
    except HostError as exc:
        yield f"# QEMU was not found: {printable(exc.hint)}"
        works = False
    if works:
        yield "# KVM runs guests here."
        yield "c.QemuSpawner.allow_tcg = False"
    else:
        yield "# KVM does not run guests here, as `qemuspawner doctor` says: they are emulated, and QEMU's"
        yield "# authors call only KVM a boundary that holds against a hostile guest."
        yield "c.QemuSpawner.allow_tcg = True"


def _gpus() -> Iterator[str]:
    passed = [gpu for gpu in find_gpus() if not find_obstacles(gpu)]
    if not passed:
        yield "# No GPU of this host can be passed on to desktops; `qemuspawner gpu check` says why."
        yield '# c.QemuSpawner.gpus = ["*"]'
        return
    yield "# GPUs that desktops may have."
    yield "c.QemuSpawner.gpus = ["
    yield from (f"    {gpu.address!r},  # {gpu.model}" for gpu in passed)
    yield "]"


def _slurm() -> Iterator[str]:
    slurm = find_slurm()
    yield "# Desktops as jobs of a Slurm cluster, instead of processes of this host."
    if slurm is None:
        yield "# This host has none of Slurm's commands."
    else:
        yield f"# {slurm.text}"
    yield '# c.JupyterHub.spawner_class = "qemu-slurm"'


def _people() -> Iterator[str]:
    yield "# Owners may share desktops, and let programs drive them with tokens of their own."
    yield "c.JupyterHub.custom_scopes = scopes.CUSTOM_SCOPES"
    yield "c.JupyterHub.extra_user_scopes = set(scopes.USER_SCOPES)"
    yield "# Everybody's desktops, for administrators."
    yield "c.JupyterHub.services = [staff.service()]"
    yield ""
    yield "# Who may log in. Without a line of this kind JupyterHub asks PAM, and lets nobody in."
    yield '# c.JupyterHub.authenticator_class = "pam"'
    yield "# c.Authenticator.allow_all = True"
    yield '# c.Authenticator.admin_users = {"root"}'
    yield ""
    yield "# On this address alone until there is TLS in front."
    yield 'c.JupyterHub.bind_url = "http://127.0.0.1:8000"'
