"""DARTS's options as settings of JupyterHub and of the spawner, or why they have none."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args, get_type_hints

from qemuspawner.cli.darts.machines import Defaults
from qemuspawner.cli.darts.read import Left, Setting
from qemuspawner.machine import Machine

_DAY_S = 86400
# DARTS counts memory in MiB, people write GiB: nobody offers 64 GiB by default, or a guest 64 MiB.
_LEAST_MIB = 64
_SHORT_ADDRESS = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@dataclass(frozen=True, kw_only=True)
class Host:
    """What DARTS's fractions are of."""

    cpus: int
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """What the configuration comes to."""

    config: dict[str, object]  # by the setting's full name, such as "JupyterHub.active_server_limit"
    defaults: Defaults
    left: tuple[Left, ...]


def translate(settings: Iterable[Setting], host: Host) -> Suggestions:
    """Every option is in what is suggested, or left with a reason; what is switched off is neither."""
    config: dict[str, object] = {}
    defaults: dict[str, object] = {}
    quota: dict[str, object] = {}
    left: list[Left] = []
    for one in settings:
        try:
            if one.name in _DEFAULTS:
                defaults |= _DEFAULTS[one.name](one.value)
            if one.name in _TRAITS:
                config |= _TRAITS[one.name](one.value)
            elif one.name in _QUOTAS:
                quota |= _QUOTAS[one.name](one.value, host)
            elif one.name in _ELSEWHERE:
                if one.value not in (None, 0, "", "0", []):
                    raise ValueError(_ELSEWHERE[one.name])
            elif one.name not in _DEFAULTS and one.name not in _PLACES:
                raise ValueError("it is no option of DARTS that is known here")
        except ValueError as exc:
            left.append(Left(place=one.place, what=one.name, reason=str(exc)))
    if quota:
        config["QemuSpawner.quotas"] = {"user": quota}
    if config.get("JupyterHub.authenticator_class") != "ldap":
        # DARTS's configuration names a server also where it asks none.
        config = {name: value for name, value in config.items() if not name.startswith("LDAP")}
    if "Mailer.sender" in config:
        config["QemuSpawner.notify"] = "qemuspawner.hub.notices.mail.Mailer"
    return Suggestions(config=config, defaults=Defaults(**defaults), left=tuple(left))  # type: ignore[arg-type]


def render(config: dict[str, object]) -> str:
    """Lines of jupyterhub_config.py, whatever DARTS's texts hold."""
    return "".join(f"c.{name} = {_literal(value)}\n" for name, value in config.items())


def _literal(value: object) -> str:
    match value:
        case bool():
            return repr(value)
        case set():
            return f"{{{', '.join(sorted(map(_literal, value)))}}}" if value else "set()"
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict():
            return f"{{{', '.join(f'{_literal(name)}: {_literal(one)}' for name, one in value.items())}}}"
        case str():
            return json.dumps(value)
    return repr(value)


# What a value has to be


def _whole(value: object, *, least: int = 0) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, float) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or value < least:
        raise ValueError(f"it is no whole number from {least} on")
    return value


def _fraction(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError("it is no fraction")
    return value


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _texts(value: object) -> list[str]:
    return [one for one in _list(value) if isinstance(one, str) and one]


def _mib(value: object) -> int:
    if not isinstance(value, (int, float)) or value <= 0:
        raise ValueError("it is no size")
    return round(value if value >= _LEAST_MIB else value * 1024)


def _text(name: str) -> Callable[[object], dict[str, object]]:
    """A setting that takes the text as it is; without one there is nothing to set."""
    return lambda value: {name: str(value)} if value else {}


# Of machines


def _lifetime(value: object) -> dict[str, object]:
    if not (span := _whole(value)):
        raise ValueError("desktops without an end there are none; set lifetime.max of the machines")
    return {"lifetime_s": span}


def _display(value: object) -> dict[str, object]:
    known = get_args(get_type_hints(Machine)["display"])
    if value not in known:
        raise ValueError(f"it is none of {', '.join(known)}, the displays of machine.toml")
    return {"display": value}


_DEFAULTS: dict[str, Callable[[object], dict[str, object]]] = {
    "snapshot_lifetime": _lifetime,
    "snapshot_alloc_cpu": lambda value: {"cpus": _whole(value, least=1)},
    "snapshot_alloc_mem": lambda value: {"memory_mib": _mib(value)},
    "snapshot_alloc_disk": lambda value: {"iso_disk_gib": _whole(value)},
    "layout_cpu": lambda value: {"offered_cpus": tuple(_whole(one, least=1) for one in _list(value))},
    "layout_memory": lambda value: {"offered_memory_mib": tuple(_mib(one) for one in _list(value))},
    "layout_lifetime": lambda value: {
        "offered_lifetime_s": tuple(_whole(one, least=1) * _DAY_S for one in _list(value))
    },
    "qemu_video": _display,
}

# Of the hub and the spawner


def _folders(value: object) -> dict[str, object]:
    folders = [
        {"name": PurePosixPath(path).name, "path": path, "mount": f"/mnt/{PurePosixPath(path).name}"}
        for path in _texts(value)
        if PurePosixPath(path).name
    ]
    return {"QemuSpawner.folders": folders} if folders else {}


def _gpus(value: object) -> dict[str, object]:
    """DARTS has addresses as lspci shows them; ours are whole."""
    gpus = [f"0000:{one}" if _SHORT_ADDRESS.fullmatch(one) else one for one in _texts(value)]
    return {"QemuSpawner.denied_gpus": gpus} if gpus else {}


def _security(value: object) -> dict[str, object]:
    word = "starttls" if "starttls" in str(value).lower() else "tls" if value else "none"
    return {"Mailer.security": word}


def _authenticator(name: str) -> Callable[[object], dict[str, object]]:
    return lambda value: {"JupyterHub.authenticator_class": name} if value else {}


_TRAITS: dict[str, Callable[[object], dict[str, object]]] = {
    "snapshot_lifetime": lambda value: {"QemuSpawner.max_lifetime": span} if (span := _whole(value)) else {},
    "dir_mounts": _folders,
    "service_max_session_nb": lambda value: {"JupyterHub.active_server_limit": _whole(value)},
    "gpu_blacklist": _gpus,
    # Also in DARTS a list with an empty name would have made everybody an administrator who gave none.
    "user_admin": lambda value: {"Authenticator.admin_users": names} if (names := set(_texts(value))) else {},
    "check_user_with_local": _authenticator("pam"),
    "check_user_with_ldap": _authenticator("ldap"),
    "ldap_server": _text("LDAPAuthenticator.server_address"),
    "ldap_port": lambda value: {"LDAPAuthenticator.server_port": port} if (port := _whole(value)) else {},
    "ldap_domain": _text("LDAPAuthenticator.user_search_base"),
    "email_from": _text("Mailer.sender"),
    "smtp_server": _text("Mailer.host"),
    "smtp_port": lambda value: {"Mailer.port": port} if (port := _whole(value)) else {},
    "smtp_use_ssl": _security,
    "certificate_crt": _text("JupyterHub.ssl_cert"),
    "certificate_key": _text("JupyterHub.ssl_key"),
}

_QUOTAS: dict[str, Callable[[object, Host], dict[str, object]]] = {
    "service_max_session_nb_per_user": lambda value, _: {"sessions": _whole(value)},
    "service_max_cpu_fraction_nb_per_user": lambda value, host: {
        "cpus": max(1, int(_fraction(value) * host.cpus))
    },
    "service_max_mem_fraction_nb_per_user": lambda value, host: {
        "memory": int(_fraction(value) * host.memory_mib)
    },
    "service_max_gpu_nb_per_user": lambda value, _: {"gpus": _whole(value)},
}

# What the import itself looks at.
_PLACES = ("dir_machines",)

_OUR_PLACES = "sessions, images and pages have places of their own; see 'state_dir'"
_NO_PORTS = "no session has a port that others reach; the hub's proxy leads to all of them"
_LAYOUT = "the pages are templates; see 'template_paths' of JupyterHub"
_PAGE = "the owner says who may come in, as what and until when"

# What has no setting, and why or where it is instead.
_ELSEWHERE = {
    **dict.fromkeys(
        ("dir_html", "dir_service", "dir_snapshots", "dir_cfg", "dir_novnc", "dir_websockify"), _OUR_PLACES
    ),
    "service": _OUR_PLACES,
    "service_logfile": "the hub's log and 'qemuspawner audit' say what happened",
    **dict.fromkeys(
        (
            "service_port",
            "service_port_vnc",
            "service_port_multiple",
            "service_reverse_proxy",
            "service_proxy",
        ),
        _NO_PORTS,
    ),
    "snapshot_use_master": "an image is never written to, as several desktops start from it",
    "machine": "users mark their own favourites, and links choose a machine",
    "boot_delay": "a desktop is shown when it is there, and nothing waits for a time",
    "qemu_exec": "QEMU is the qemu-system-x86_64 on the PATH",
    "qemu_exec_options": "no options of QEMU are taken; machine.toml says what a guest has",
    "service_max_load": "what desktops are promised is counted; see 'cpu_overcommit' and 'memory_reserve'",
    "service_max_script_length": "users give scripts only where 'scripts' says so; see 'max_script'",
    "service_allow_config_script": "users give scripts only where 'scripts' says so",
    "fallback_servers": "several hosts are a Slurm cluster; see the manual",
    "config_script": "see 'guest_files', hooks in the image and 'folders'; no password gets into a guest",
    "check_user_with_email": "it let everybody in; choose an authenticator of JupyterHub",
    "check_user_with_imap": "JupyterHub has no such authenticator; choose PAM, LDAP or OAuth",
    "check_user_with_smtp": "JupyterHub has no such authenticator; choose PAM, LDAP or OAuth",
    "check_user_custom": "write it as an authenticator of JupyterHub",
    "check_user_mfa": "a second factor is the login server's, with an OAuth authenticator",
    "imap_server": "JupyterHub has no such authenticator",
    "imap_port": "JupyterHub has no such authenticator",
    "email_passwd": "write it into a file that only the hub can read, and its path into Mailer.password_file",
    "email_method": "mails go by an SMTP server; see Mailer",
    "oneshot": _PAGE,
    "service_monitor": "administrators have a page for that",
    **dict.fromkeys(
        ("layout_title", "layout_level", "layout_header", "layout_footer", "layout_gpu", "layout_resize"),
        _LAYOUT,
    ),
}
