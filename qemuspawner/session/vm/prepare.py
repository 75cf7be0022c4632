"""From a SessionSpec to a running QEMU: everything before the web stack is loaded.

Synchronous on purpose: QEMU must be started from the main thread (its death signal is tied to that), and
before anything slow is imported.
"""

import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import structs

from qemuspawner.errors import HostError, SessionError, VmError
from qemuspawner.machine import Machine
from qemuspawner.machines.old_images import machine_of_saved
from qemuspawner.machines.templates import find_template, find_template_obstacle
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths
from qemuspawner.qemu.command import qemu_args
from qemuspawner.qemu.folders import bind_folders
from qemuspawner.qemu.host import (
    Qemu,
    check_disk,
    check_memory,
    choose_accelerator,
    find_qemu,
    find_uefi,
)
from qemuspawner.qemu.image import check_image, create_layer, create_overlay
from qemuspawner.qemu.jail import Limits, check_jail, in_jail, tie_to_parent
from qemuspawner.qemu.lan import mac_address, opened_lan
from qemuspawner.qemu.memory import load_memory, make_memory
from qemuspawner.qemu.network import Outside, plan_network
from qemuspawner.qemu.passing import find_late_obstacle
from qemuspawner.qemu.process import end_qemu, start_qemu
from qemuspawner.qemu.saving import check_files, fingerprint, is_image
from qemuspawner.qemu.seed import write_seed
from qemuspawner.qemu.tpm import opened_tpm, put_state
from qemuspawner.qemu.vm import Accelerator, Lan, Memory, Vm, can_plug_gpus, make_vm
from qemuspawner.saved import Fingerprint, Saved, delete_saved, find_suspended, load_saved
from qemuspawner.session.host.directory import claim
from qemuspawner.session.host.disk_limits import disk_limit_mib, max_file_mib
from qemuspawner.session.host.gpus import take_gpus
from qemuspawner.session.host.holding import Holding
from qemuspawner.session.host.image_cache import ImageCache
from qemuspawner.session.host.job_gpus import JOB_VARIABLE, find_job_devices
from qemuspawner.session.host.lease import Lease
from qemuspawner.session.inside.folders import FolderPlan, check_required, plan_folders
from qemuspawner.session.inside.seed import make_seed
from qemuspawner.spec import SessionSpec, Way
from qemuspawner.texts import Text, list_texts
from qemuspawner.vfio import Passed

log = logging.getLogger(__name__)

Report = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the session's VMs run with on this host."""

    qemu: Qemu
    accelerator: Accelerator
    gpus: tuple[Passed, ...] = ()  # those that this session has taken
    cache: ImageCache | None = None  # of what lies on shared storage
    holding: Holding | None = None  # where other hosts have the session's directory too

    def fingerprint(self, machine: Machine, *, cpus: int, memory_mib: int) -> Fingerprint:
        """Raises OSError where a file of the image is missing."""
        return fingerprint(
            machine, cpus=cpus, memory_mib=memory_mib, accelerator=self.accelerator, qemu=self.qemu
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a VM comes up: what it starts from, and why so."""

    way: Way
    why: str = ""
    saved: Saved | None = None  # what it goes on from
    folder: SavedPaths | None = None  # where that lies
    restores: bool = False  # with its memory; else only the disk is taken from `saved`

    @property
    def is_new(self) -> bool:
        """Whether the VM is a new desktop, rather than one that goes on from something that was kept."""
        return self.saved is None or self.saved.kind == "template"


@dataclass(frozen=True, kw_only=True)
class Started:
    """A QEMU that was started; whether it lives is for the supervisor to see."""

    vm: Vm
    plan: Plan
    process: "subprocess.Popen[bytes]"
    jail: bool  # what has to be around it is not less
    file_limit_mib: int  # from its first instruction on a guest's disk takes no more
    folders: FolderPlan
    state: int | None = None  # the descriptor of what it waits for, as QEMU has it


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A session with its directory, its host and its first VM."""

    spec: SessionSpec  # with the machine and size of what is woken
    paths: SessionPaths
    host: Host
    fingerprint: Fingerprint  # of the VM, taken before QEMU opened the image
    started: Started


def prepare(
    spec: SessionSpec,
    stack: contextlib.ExitStack,
    report: Report,
    *,
    memories: Mapping[str, int] | None = None,
) -> Prepared:
    """Start the VM that `spec` asks for; `stack` undoes everything.

    `report` is told each step and how far it is to the desktop, in percent. `memories` are the memories of
    templates that are loaded already, by their digest.

    Raises:
        QemuSpawnerError: What is missing or wrong, in a sentence for the user.
    """
    report(Text("Checking the host and the machine's image"), 5)
    state = StatePaths.of(spec.state_dir)
    qemu = find_qemu(spec.machine.architecture)
    if spec.jail:
        check_jail()
    accelerator = choose_accelerator(
        spec.accelerator, allow_tcg=spec.allow_tcg, qemu=qemu, probes=state.probes
    )
    # A predecessor that the hub has lost gives way here, and gives its memory and its GPUs back.
    paths, holding = _claim(spec, state, stack)
    gpus = _take_gpus(spec, state, paths, stack)
    cache = ImageCache.within(spec.image_cache) if spec.image_cache else None
    host = Host(qemu=qemu, accelerator=accelerator, gpus=gpus, cache=cache, holding=holding)
    spec, plan = choose(spec, paths, host)
    _check_supported(spec)
    check_image(spec.machine.image)
    fits = host.fingerprint(spec.machine, cpus=spec.cpus, memory_mib=spec.memory_mib)
    check_memory(spec.memory_mib)
    check_disk(state.root)
    _check_folders(spec, state)
    paths.spec.write_text(spec.to_json())
    try:
        started = start_vm(spec, paths, host, plan, stack, report, memories=memories or {})
    except (VmError, OSError) as exc:
        if plan.way != "restored":
            raise
        # Templates may be deleted at any moment, also while one is read.
        reason = (
            exc
            if isinstance(exc, VmError)
            else VmError(Text("It cannot be read: {strerror}.", strerror=exc.strerror))
        )
        started = start_vm(spec, paths, host, boot_instead(spec, reason), stack, report)
    return Prepared(spec=spec, paths=paths, host=host, fingerprint=fits, started=started)


def _claim(
    spec: SessionSpec, state: StatePaths, stack: contextlib.ExitStack
) -> tuple[SessionPaths, Holding | None]:
    """The session's directory, for as long as `stack` is open."""
    if not spec.lease_s:
        return stack.enter_context(claim(state, spec.session_id)), None
    lease = Lease(state.session(spec.session_id).root, lease_s=spec.lease_s)
    try:
        paths = stack.enter_context(claim(state, spec.session_id, lease=lease))
    except OSError as exc:
        raise SessionError(
            Text("The session's directory cannot be used: {strerror}.", strerror=exc.strerror),
            hint=Text("The administrator checks who owns the state folder, and its disk."),
        ) from exc
    return paths, stack.enter_context(Holding(lease))


def _take_gpus(
    spec: SessionSpec, state: StatePaths, paths: SessionPaths, stack: contextlib.ExitStack
) -> tuple[Passed, ...]:
    if spec.gpus is None or spec.gpu_devices or JOB_VARIABLE not in os.environ:
        return take_gpus(spec, state.gpus, stack)
    # Slurm gives them to one job at a time. Locks in the state folder would be those of all nodes.
    devices = find_job_devices(os.environ)
    return take_gpus(structs.replace(spec, gpu_devices=devices), paths.root / "gpus", stack)


def boot_instead(spec: SessionSpec, exc: VmError) -> Plan:
    """What to do where a template cannot be restored."""
    log.warning("Session %s boots cold: its template cannot be restored: %s", spec.session_id, exc.message)
    return Plan(way="cold", why=Text("its template cannot be restored; the log has the reason"))


def choose(spec: SessionSpec, paths: SessionPaths, host: Host) -> tuple[SessionSpec, Plan]:
    """What the session starts from: what was saved of it, a checkpoint, a template, or nothing.

    Raises:
        SessionError: What was asked for is not there, or cannot be restored here.
    """
    if spec.branch:
        session_id, _, name = spec.branch.partition("/")
        return _wake(spec, StatePaths.of(spec.state_dir).session(session_id).saved / name, host)
    if spec.sleeping == "discard":
        for folder in paths.saved.glob("*"):
            delete_saved(folder)
    elif spec.sleeping not in ("wake", "boot"):
        return _wake(spec, paths.saved / spec.sleeping, host)
    suspended = find_suspended(paths)
    if suspended is None:
        return spec, choose_template(spec, host)
    folder = paths.saved / suspended.name
    if spec.sleeping == "boot":
        return _boot_disk(spec, folder, suspended)
    return _wake(spec, folder, host)


def choose_template(spec: SessionSpec, host: Host) -> Plan:
    """A template where one fits, else a cold boot, and why."""
    machine = spec.machine
    if not spec.templates:
        return Plan(way="cold", why=Text("templates are switched off here"))
    if obstacle := find_template_obstacle(machine) or _find_late_obstacle(machine, host):
        return Plan(way="cold", why=obstacle)
    state = StatePaths.of(spec.state_dir)
    try:
        fits = host.fingerprint(machine, cpus=spec.cpus, memory_mib=spec.memory_mib)
    except OSError as exc:
        # check_image says which file it is.
        return Plan(way="cold", why=Text("its image cannot be read: {strerror}", strerror=exc.strerror))
    saved, why = find_template(state, machine, fits)
    if saved is not None:
        folder = SavedPaths(root=state.templates / saved.name)
        try:
            check_files(folder, saved)
            return Plan(way="restored", saved=saved, folder=folder, restores=True)
        except VmError as exc:
            why = Text("its template is damaged: {message}", message=exc.message)
    log.info("Session %s boots cold: %s.", spec.session_id, why)
    return Plan(way="cold", why=why)


def _find_late_obstacle(machine: Machine, host: Host) -> str:
    """Why the session's GPUs keep it from a template, in a sentence; "" where they do not."""
    if not host.gpus:
        return ""
    if not can_plug_gpus(machine):
        return Text("it is built to have its GPU when it boots")
    return find_late_obstacle(host.gpus)


def _wake(spec: SessionSpec, folder: Path, host: Host) -> tuple[SessionSpec, Plan]:
    saved = load_saved(folder)
    if saved is None or saved.spec is None or saved.spec.user != spec.user:
        raise SessionError(
            Text("What this desktop was to go on from is not there any more."),
            hint=Text("It was deleted or has expired; start a new desktop."),
        )
    if saved.memory == "lost":
        return _boot_disk(spec, folder, saved)
    spec = _as_saved(spec, saved)
    paths = SavedPaths(root=folder)
    try:
        now = host.fingerprint(spec.machine, cpus=spec.cpus, memory_mib=spec.memory_mib)
        if is_image(spec.machine.image, saved.fingerprint.image):
            now = structs.replace(now, image=saved.fingerprint.image)
        if differences := saved.fingerprint.differences(now):
            raise VmError(list_texts(differences))
        check_files(paths, saved)
    except (VmError, OSError) as exc:
        raise cannot_wake(exc.message if isinstance(exc, VmError) else str(exc.strerror)) from exc
    return spec, Plan(way="woken", saved=saved, folder=paths, restores=True)


def cannot_wake(why: str) -> SessionError:
    return SessionError(
        Text("The desktop cannot be woken: {why}.", why=why),
        hint=Text("Boot it from its disk: files are kept, and programs that were open are lost."),
    )


def _boot_disk(spec: SessionSpec, folder: Path, saved: Saved) -> tuple[SessionSpec, Plan]:
    why = Text("booted from the disk that was kept; programs that were open are lost")
    spec = _as_saved(spec, saved)
    return spec, Plan(way="cold", why=why, saved=saved, folder=SavedPaths(root=folder))


def _as_saved(spec: SessionSpec, saved: Saved) -> SessionSpec:
    """`spec` with the machine and size of what was saved, and what is done once in it.

    Raises:
        SessionError: The image that its disk stands on is not there any more.
    """
    assert saved.spec is not None
    machine = machine_of_saved(saved.spec.machine, saved.fingerprint.image)
    try:
        is_there = is_image(machine.image, saved.fingerprint.image)
    except OSError:
        is_there = False
    if not is_there:
        raise SessionError(
            Text("The image that this desktop's disk stands on has been replaced."),
            hint=Text("Nothing is deleted: the administrator puts the former image of the machine back."),
        )
    return structs.replace(
        spec,
        machine=machine,
        cpus=saved.spec.cpus,
        memory_mib=saved.spec.memory_mib,
        gifts=saved.spec.gifts,
        script=saved.spec.script,
    )


def _check_supported(spec: SessionSpec) -> None:
    machine = spec.machine
    if machine.gpu.need == "required" and spec.gpus is None:
        raise SessionError(
            Text("'{name}' needs a GPU, and the desktop was promised none.", name=machine.name)
        )


def _check_folders(spec: SessionSpec, state: StatePaths) -> None:
    """Raises SessionError where the desktop must not start without a folder that cannot be had."""
    with contextlib.ExitStack() as opened:
        plan, _ = plan_folders(spec, opened, state_root=state.root, is_mapped=False)
        check_required(spec, plan)


def start_vm(
    spec: SessionSpec,
    paths: SessionPaths,
    host: Host,
    plan: Plan,
    stack: contextlib.ExitStack,
    report: Report,
    *,
    memories: Mapping[str, int] | None = None,
) -> Started:
    """Make the VM's disk and start QEMU, which then boots or waits to be restored.

    Raises:
        QemuSpawnerError: What is missing or wrong.
    """
    outside = _plan_network(spec, paths)
    if host.cache is not None:
        # Only this VM knows: what is saved of it is woken on any host.
        spec = structs.replace(spec, machine=host.cache.localise(spec.machine, report))
    if host.holding is not None:
        # Copying may have taken minutes; from here on the directory is written to.
        host.holding.check()
    report(Text("Making your own copy of the machine's disk"), 15)
    _empty(paths.vm)
    uefi_code = None
    if spec.machine.firmware == "uefi":
        uefi_code, empty_variables = find_uefi(spec.machine.architecture, secure=spec.machine.secure_boot)
        kept = plan.folder.firmware_vars if plan.folder is not None else empty_variables
        shutil.copyfile(kept, paths.firmware_vars)
    layers = _make_disk(spec, paths, plan)
    with contextlib.ExitStack() as opened:
        memory, state = _open_saved(spec, host, plan, memories or {}, opened, report)
        lan = None
        if spec.machine.has_lan:
            at = opened.enter_context(opened_lan(spec.network))
            lan = Lan(mac=mac_address(spec.session_id), descriptor=at)
        folders, open_folders = plan_folders(
            spec,
            opened,
            state_root=StatePaths.of(spec.state_dir).root,
            is_mapped=memory.descriptor is not None,
        )
        if folders.folders and folders.way == "virtiofs":
            # What serves them reads and writes the guest's memory itself.
            shared = make_memory(spec.memory_mib)
            opened.callback(os.close, shared)
            memory = replace(memory, descriptor=shared, private=False)
        tpm = None
        if spec.machine.tpm:
            kept_tpm = plan.folder.tpm_state if plan.folder is not None else None
            state_file = put_state(paths.tpm, kept_tpm)
            tpm = opened.enter_context(opened_tpm(state_file, jail=spec.jail, stack=stack))
        vm = make_vm(
            spec.machine,
            paths,
            accelerator=host.accelerator,
            cpus=spec.cpus,
            memory=memory,
            layers=layers,
            incoming=plan.restores,
            uefi_code=uefi_code,
            network=outside is not None,
            lan=lan,
            gpus=host.gpus,
            exports=folders.exports,
            tpm=tpm,
            seed=_make_seed(spec, paths, report) if spec.machine.has_seed and plan.is_new else None,
        )
        report(Text("Starting the virtual machine"), 25)
        at = lan.descriptor if lan is not None else None
        inherited = [number for number in (memory.descriptor, state, at, tpm) if number is not None]
        command = [str(host.qemu.program), *qemu_args(vm)]
        if spec.jail:
            exported = open_folders if vm.exports else []
            command = in_jail(
                command,
                work_dir=paths.vm,
                files=vm.files,
                kvm=host.accelerator == "kvm",
                outside=outside,
                resolv_conf=paths.resolv_conf if outside is not None else None,
                devices=vm.devices,
                folders=bind_folders(exported, folders.ids) if exported else (),
            )
            inherited += [one.descriptor for one in exported]
        limit_mib = disk_limit_mib(spec, vm)
        limits = Limits(memory_mib=spec.memory_mib, cpus=spec.cpus, file_mib=max_file_mib(spec, limit_mib))
        process = start_qemu(
            tie_to_parent(command, parent_pid=os.getpid(), limits=limits),
            work_dir=paths.vm,
            inherited=inherited,
        )
    stack.callback(end_qemu, process)
    return Started(
        vm=vm,
        plan=plan,
        process=process,
        folders=folders,
        state=state,
        jail=spec.jail,
        file_limit_mib=limit_mib,
    )


def _make_seed(spec: SessionSpec, paths: SessionPaths, report: Report) -> Path:
    """The volume that the machine's cloud-init finds at its first boot."""
    write_seed(paths.seed, make_seed(spec, lambda problem: report(problem, 20)))
    return paths.seed


def _plan_network(spec: SessionSpec, paths: SessionPaths) -> Outside | None:
    """The walls around the guest's network; None where it leads nowhere.

    Raises:
        HostError: They cannot be built here.
    """
    if spec.network.mode in ("allow", "internet") and not spec.jail:
        raise HostError(
            Text(
                "'{name}' asks for a network, and guests have none without the jail.", name=spec.machine.name
            ),
            hint=Text("The administrator switches the jail around QEMU on (jail = True)."),
        )
    hub = urlsplit(os.environ.get("JUPYTERHUB_API_URL", "")).hostname
    outside = plan_network(spec.network, deny=[hub] if hub else [])
    if outside is not None:
        paths.resolv_conf.write_text(outside.resolv_conf)
    return outside


def _empty(folder: Path) -> None:
    """Delete what an earlier VM left: links of its own, or disks that are a checkpoint's by another name."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _make_disk(spec: SessionSpec, paths: SessionPaths, plan: Plan) -> tuple[Path, ...]:
    """The VM's overlay; the frozen ones under it."""
    image = spec.machine.image
    if image.format == "iso" and not image.disk:
        return ()
    if plan.saved is None or plan.folder is None:
        create_overlay(paths.overlay(0), image)
        return ()
    if plan.saved.kind == "template":
        # A copy of its few megabytes: the session needs nothing more of the template, which may be dropped.
        shutil.copyfile(plan.folder.layer(0), paths.overlay(0))
        return ()
    # Names of our own: a checkpoint may be deleted while we run on its disk.
    shutil.rmtree(paths.layers, ignore_errors=True)
    paths.layers.mkdir(mode=0o700)
    layers = []
    for depth in range(plan.saved.layers):
        below = plan.folder.layer(depth)
        layers.append(paths.layers / below.name)
        os.link(below, layers[-1])
    create_layer(paths.overlay(len(layers)), layers[-1])
    return tuple(layers)


def _open_saved(
    spec: SessionSpec,
    host: Host,
    plan: Plan,
    memories: Mapping[str, int],
    opened: contextlib.ExitStack,
    report: Report,
) -> tuple[Memory, int | None]:
    """The VM's memory, and the descriptor of the state that it goes on from."""
    memory = Memory(size_mib=spec.memory_mib)
    if not plan.restores:
        return memory, None
    if plan.saved is None or plan.folder is None:
        raise AssertionError("What is restored was saved.")
    state = os.open(plan.folder.state, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, state)
    if plan.saved.memory == "mapped":
        file = plan.folder.memory
        digest = plan.saved.files[file.name].digest
        descriptor = memories.get(digest)
        if descriptor is None:
            if host.cache is not None:
                file = Path(host.cache.find(str(file), report))
            descriptor = load_memory(file, digest=digest)
            opened.callback(os.close, descriptor)
        memory = Memory(size_mib=spec.memory_mib, descriptor=descriptor)
    return memory, state
