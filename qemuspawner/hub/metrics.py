"""What Prometheus is told of desktops, beside JupyterHub's own metrics and at the same place, `/hub/metrics`.

Nobody's name is in it. share/grafana/desktops.json shows all of it.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qemuspawner.hub.desktops.overview import Overview, find_spawners, overview_of, state_of
from qemuspawner.spec import SessionStatus

if TYPE_CHECKING:
    from qemuspawner.hub.mixin import QemuSpawnerMixin

# A restored desktop is there in a fraction of a second, a cold one under emulation in minutes.
_START_BUCKETS_S = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

STARTS = Histogram(
    "qemuspawner_start_seconds",
    "From the start of a session to its desktop, by the way it came up: cold, restored or woken",
    ["way"],
    buckets=_START_BUCKETS_S,
)
REFUSALS = Counter(
    "qemuspawner_refusals",
    "Starts that were refused or failed, by the kind of reason",
    ["reason"],
)
# What is not there cannot be drawn: all that can happen is there from the first scrape.
for _way in ("cold", "restored", "woken"):
    STARTS.labels(_way)
for _reason in ("options", "quota", "capacity", "announcement", "drain", "machine", "host", "session"):
    REFUSALS.labels(_reason)


class Desktops(Collector):
    """What runs at the moment of a scrape."""

    def __init__(self) -> None:
        self._users: ReferenceType[Any] | None = None
        self._overview: Overview | None = None
        self._looking: asyncio.Task[Any] | None = None

    def watch(self, settings: dict[str, Any]) -> None:
        """Tell of the users' desktops of the hub with these settings."""
        self._users = ref(settings["users"])
        self._overview = overview_of(settings)

    def describe(self) -> Iterable[Metric]:
        # Registering would else collect, before there is a hub.
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        families = _families()
        users = self._users and self._users()
        spawners = [spawner for spawner in find_spawners(users or {}) if spawner.active]
        _count(spawners, families)
        if self._overview is not None and spawners:
            _add_up(spawners, self._overview.newest, families)
            self._look(spawners)
        return families.values()

    def _look(self, spawners: list["QemuSpawnerMixin"]) -> None:
        """Ask the sessions, for the next scrape: a scrape waits for nobody."""
        assert self._overview is not None
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._overview.look(spawners))


def _families() -> dict[str, GaugeMetricFamily]:
    families = [
        GaugeMetricFamily("qemuspawner_sessions", "Desktops", labels=["state", "machine", "node"]),
        GaugeMetricFamily("qemuspawner_promised_cpus", "Virtual CPUs of desktops", labels=["node"]),
        GaugeMetricFamily("qemuspawner_promised_memory_bytes", "Memory of desktops", labels=["node"]),
        GaugeMetricFamily("qemuspawner_promised_gpus", "GPUs of desktops", labels=["node", "model"]),
        GaugeMetricFamily("qemuspawner_used_cpus", "CPUs that desktops keep busy", labels=["node"]),
        GaugeMetricFamily(
            "qemuspawner_used_gpus", "GPUs that desktops keep busy, of each the busiest one", labels=["node"]
        ),
        GaugeMetricFamily(
            "qemuspawner_disk_bytes_per_second", "Read and written by desktops", labels=["node"]
        ),
        GaugeMetricFamily("qemuspawner_used_memory_bytes", "Memory that desktops have", labels=["node"]),
        GaugeMetricFamily(
            "qemuspawner_network_receive_bytes_per_second", "Received by desktops", labels=["node"]
        ),
        GaugeMetricFamily(
            "qemuspawner_network_transmit_bytes_per_second", "Sent by desktops", labels=["node"]
        ),
        GaugeMetricFamily("qemuspawner_viewers", "Open windows of desktops", labels=["node"]),
        GaugeMetricFamily("qemuspawner_silent_sessions", "Desktops that do not answer", labels=["node"]),
    ]
    return {family.name: family for family in families}


def _count(spawners: Iterable["QemuSpawnerMixin"], families: Mapping[str, GaugeMetricFamily]) -> None:
    """What the hub itself knows."""
    sessions: Tally[tuple[str, str, str]] = Tally()
    cpus: Tally[str] = Tally()
    memory: Tally[str] = Tally()
    gpus: Tally[tuple[str, str]] = Tally()
    for spawner in spawners:
        known = spawner.known
        sessions[state_of(spawner), known.machine, known.node] += 1
        cpus[known.node] += known.cpus
        memory[known.node] += known.memory_mib
        if (promise := spawner.promise) is not None and promise.gpus is not None:
            gpus[known.node, promise.gpus.model] += promise.gpus.count
    for labels, count in sessions.items():
        families["qemuspawner_sessions"].add_metric(labels, count)
    for node in cpus:
        families["qemuspawner_promised_cpus"].add_metric([node], cpus[node])
        families["qemuspawner_promised_memory_bytes"].add_metric([node], memory[node] * 1024**2)
    for place, count in gpus.items():
        families["qemuspawner_promised_gpus"].add_metric(place, count)


def _add_up(
    spawners: Iterable["QemuSpawnerMixin"],
    statuses: Mapping["QemuSpawnerMixin", SessionStatus | None],
    families: Mapping[str, GaugeMetricFamily],
) -> None:
    """What the sessions said when they were asked last."""
    sums: dict[str, Tally[str]] = {name: Tally() for name in families}
    for spawner in spawners:
        node = spawner.known.node
        if spawner not in statuses:
            continue
        status = statuses[spawner]
        sums["qemuspawner_silent_sessions"][node] += status is None
        if status is None:
            continue
        sums["qemuspawner_viewers"][node] += status.viewers
        if status.load is not None:
            # Tally's values are integers to its type only.
            sums["qemuspawner_used_cpus"][node] += (status.load.cpu_percent or 0) / 100  # type: ignore[assignment]
            # None also where there is no GPU: such a host has no such number.
            if status.load.gpu_percent is not None:
                sums["qemuspawner_used_gpus"][node] += status.load.gpu_percent / 100  # type: ignore[assignment]
            for name, value, factor in (
                ("disk_bytes_per_second", status.load.disk_kib_s, 1024),
                ("used_memory_bytes", status.load.memory_mib, 1024**2),
                ("network_receive_bytes_per_second", status.load.received_kib_s, 1024),
                ("network_transmit_bytes_per_second", status.load.sent_kib_s, 1024),
            ):
                sums[f"qemuspawner_{name}"][node] += (value or 0) * factor
    for name, by_node in sums.items():
        for node, value in by_node.items():
            families[name].add_metric([node], value)


DESKTOPS = Desktops()
REGISTRY.register(DESKTOPS)
