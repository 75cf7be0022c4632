"""The process of a session, `qemuspawner-session`: QEMU's parent, and the web server the hub proxies to.

JupyterHub starts it as it starts `jupyterhub-singleuser` for notebooks, or has the fork server become it.
"""

import asyncio
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.paths import StatePaths
from qemuspawner.session.stopping import StopSignal
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec


def main() -> None:
    """The console script: run one session to its end; exit code 1 where it failed.

    With `--fork-server DESCRIPTOR` it serves the hub at that descriptor instead; with `--job DESCRIPTOR` it
    is a job of a batch system, and reads there what it has elsewhere from its environment. With `--sweep
    STATE` it does what each session does at its start: it deletes what dead ones of this account have left.
    """
    # Files and sockets are for this account alone, and guest memory must not end up in a core file.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(format="[%(levelname).1s %(asctime)s qemuspawner-session] %(message)s")
    match sys.argv[1:]:
        case ["--fork-server", descriptor]:
            from qemuspawner.session.forkserver import serve

            serve(int(descriptor))
        case ["--sweep", folder]:
            from qemuspawner.session.host.directory import sweep

            print(sweep(StatePaths.of(folder), own_id=""))
        case ["--job", descriptor]:
            from qemuspawner.session.host.job import become_job

            try:
                become_job(int(descriptor))
            except QemuSpawnerError as exc:
                logging.getLogger(__name__).error(exc.text)
                sys.exit(1)
            sys.exit(run_session())
        case _:
            sys.exit(run_session())


def run_session(memories: Mapping[str, int] | None = None) -> int:
    """Run the session that the environment asks for; the process's exit code.

    `memories` are descriptors of templates' memories, by their digest.
    """
    logging.getLogger("qemuspawner").setLevel(os.environ.get("QEMUSPAWNER_LOG_LEVEL", "INFO").upper())
    stop_signal = StopSignal()
    try:
        spec = SessionSpec.from_environment()
    except QemuSpawnerError as exc:
        logging.getLogger(__name__).error(exc.text)
        return 1
    del os.environ[SPEC_VARIABLE]

    from qemuspawner.session.life.supervisor import Supervisor

    supervisor = Supervisor(spec, memories=memories)
    try:
        supervisor.prepare()
        # JupyterHub's client takes most of a second to import: the guest boots meanwhile.
        from qemuspawner.session.app import serve

        with asyncio.Runner(loop_factory=_find_loop()) as runner:
            runner.run(serve(supervisor, stop_signal))
    finally:
        supervisor.close()
    return 1 if supervisor.state == "failed" else 0


def _find_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: the relay spends less on each byte. None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
