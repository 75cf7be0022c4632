"""What of a cluster a user is offered, and what a start there is refused for, without a cluster."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.form.form import unpack_form
from qemuspawner.hub.form.options import Options, RefusedOptionsError, check_options
from qemuspawner.hub.form.partition_view import show_partitions, show_reservations
from qemuspawner.hub.limits import Limits
from qemuspawner.hub.slurm.nodes import Cluster, parse_cluster
from qemuspawner.hub.slurm.offers import JobOwner, OffersCluster, count_gpus
from qemuspawner.hub.slurm.rules import Rules, expand_nodes, parse_reservations, parse_rules
from qemuspawner.machine import Cpus, Gpu, Image, Lifetime, Machine, Memory, Mib, Seconds
from qemuspawner.spec import Gpus

SINFO = """\
n1|desktop*|idle|0/4/0/4|6000|0|(null)|gpu:0|198.18.77.11|4:00:00|
n1|short|idle|0/4/0/4|6000|0|(null)|gpu:0|198.18.77.11|5:00|
n2|desktop*|mix|3/1/0/4|6000|4500|(null)|gpu:0|198.18.77.12|4:00:00|
n3|desktop*|mix|2/2/0/4|6000|400|gpu:t4:2(S:0)|gpu:t4:1(IDX:0)|198.18.77.13|4:00:00|
n3|gpu|mix|2/2/0/4|6000|400|gpu:t4:2(S:0)|gpu:t4:1(IDX:0)|198.18.77.13|infinite|
n4|desktop*|down*|0/0/4/4|9300|0|(null)|gpu:0|198.18.77.14|4:00:00|
"""
# As Slurm 22.05 prints them, but for what the tests are about.
PARTITIONS = (
    "PartitionName=desktop AllowGroups=ALL AllowAccounts=ALL Default=YES MaxNodes=UNLIMITED MaxTime=04:00:00 "
    "MinNodes=0 MaxCPUsPerNode=UNLIMITED Nodes=n[1-4] ReqResv=NO State=UP JobDefaults=(null) "
    "DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=16,mem=27000M\n"
    "PartitionName=short AllowGroups=ALL AllowAccounts=ALL MaxNodes=1 MaxTime=00:05:00 MaxCPUsPerNode=2 "
    "Nodes=n1 ReqResv=NO State=UP MaxMemPerNode=2048 TRES=cpu=4,mem=6000M\n"
    "PartitionName=gpu AllowGroups=gpuusers,staff DenyAccounts=guests MaxTime=UNLIMITED Nodes=n3 "
    "MaxCPUsPerNode=UNLIMITED ReqResv=NO State=UP MaxMemPerCPU=2G Brand=new\n"
)
RESERVATION = (
    "ReservationName={name} StartTime={start} EndTime={end} Duration=02:00:00 Nodes={nodes} NodeCnt=2 "
    "CoreCnt=8 Features=(null) PartitionName=(null) Flags=SPEC_NODES TRES=cpu=8 Users={users} Groups=(null) "
    "Accounts=(null) Licenses=(null) State=ACTIVE Comment=Users=root for all\n"
)
MACHINE = Machine(
    id="debian",
    name="Debian",
    image=Image(file="/nowhere/disk.raw", format="raw"),
    cpus=Cpus(default=1, offered=(1, 2, 4, 8)),
    memory=Memory(default=Mib(1024), offered=(Mib(1024), Mib(4096), Mib(8192))),
    lifetime=Lifetime(default=Seconds(3600), offered=(Seconds(3600),), max=Seconds(12 * 3600)),
    gpu=Gpu(need="optional"),
)
OWNER = JobOwner(user="qemuspawner", groups=frozenset(("qemuspawner", "gpuusers")))


def moment(offset_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + offset_s))


def reserve(name: str, *, begin_s: float = -60, end_s: float = 7200, **more: str) -> str:
    values = {"nodes": "n[1-2]", "users": "qemuspawner", **more}
    return RESERVATION.format(name=name, start=moment(begin_s), end=moment(end_s), **values)


def cluster(reservations: str = "", partitions: str = PARTITIONS) -> Cluster:
    return replace(
        parse_cluster(SINFO), rules=parse_rules(partitions), reservations=parse_reservations(reservations)
    )


def limits_of(
    found: Cluster | None = None,
    *,
    owner: JobOwner = OWNER,
    groups: tuple[str, ...] = (),
    **traits: Any,
) -> Limits:
    offers = OffersCluster(**{"partitions": {"*": []}, "gpus": ["*"], **traits})
    found = found or cluster()
    partitions = offers.offer_partitions(found, owner, groups, is_current=True)
    reservations = offers.offer_reservations(found, owner, groups)
    return Limits(partitions=partitions, reservations=reservations, gpus=count_gpus(partitions))


def check(options: dict[str, object], limits: Limits | None = None, machine: Machine = MACHINE) -> Options:
    return check_options(
        {"machine": "debian", **options},
        machines={"debian": machine},
        limits=limits or limits_of(),
        startable=False,
    )


def refusal(options: dict[str, object], limits: Limits | None = None) -> dict[str, str]:
    with pytest.raises(RefusedOptionsError) as caught:
        check(options, limits)
    return caught.value.problems


def names(limits: Limits) -> list[str]:
    return [one.name for one in limits.partitions or ()]


# What is offered


def test_partitions_come_in_the_administrators_order_and_each_once() -> None:
    assert names(limits_of(partitions={"gpu": [], "*": []})) == ["gpu", "desktop", "short"]
    assert names(limits_of(partitions={})) == ["desktop"]
    assert names(limits_of(partitions={}, partition="gpu")) == ["gpu"]
    assert names(limits_of(partitions={}, partition="none")) == []


@pytest.mark.parametrize(
    ("owner", "groups", "offered"),
    [
        (OWNER, (), ["desktop", "short"]),
        (OWNER, ("staff",), ["gpu", "desktop", "short"]),
        (replace(OWNER, groups=frozenset(("users",))), ("staff",), ["desktop", "short"]),
        (replace(OWNER, account="guests"), ("staff",), ["desktop", "short"]),
        (replace(OWNER, groups=None), ("staff",), ["gpu", "desktop", "short"]),
    ],
    ids=["not of the hub's group", "of both", "not of Slurm's group", "denied account", "groups not known"],
)
def test_a_partition_is_offered_to_whom_the_hub_and_slurm_let_in(
    owner: JobOwner, groups: tuple[str, ...], offered: list[str]
) -> None:
    assert names(limits_of(owner=owner, groups=groups, partitions={"gpu": ["staff"], "*": []})) == offered


def test_a_machine_size_fits_on_so_many_of_a_partitions_nodes() -> None:
    desktop = (limits_of().partitions or ())[0]

    def count(cpus: int, memory_mib: int, gpus: Gpus | None = None) -> int:
        return desktop.count_fitting(Need(cpus=cpus, memory_mib=memory_mib, gpus=gpus))

    assert len(desktop.nodes) == 4
    assert count(1, 900) == 3
    assert count(2, 900) == 2
    assert count(1, 4096) == 2
    assert count(4, 5000) == 1
    assert count(1, 900, Gpus(model="t4", count=1)) == 1
    assert count(1, 900, Gpus(count=2)) == 0


def test_nodes_of_a_reservation_are_free_for_who_runs_in_it_only() -> None:
    limits = limits_of(cluster(reserve("course")), reservations={"course": []})
    desktop, (course,) = (limits.partitions or ())[0], limits.reservations
    need = Need(cpus=1, memory_mib=900)

    assert desktop.count_fitting(need) == 1
    assert desktop.count_fitting(need, course) == 2


def test_reservations_are_offered_by_name_user_and_group_until_they_are_over() -> None:
    found = cluster(
        reserve("course-1")
        + reserve("course-2", begin_s=-7200, end_s=-60)
        + reserve("course-3", users="root")
        + reserve("course-4", users="-qemuspawner")
        + reserve("private")
        + reserve("staff-1")
        + "ReservationName=broken StartTime=soon EndTime=late Nodes=n1 Users=qemuspawner\n"
        + "No reservations in the system\n"
    )

    limits = limits_of(found, reservations={"course-*": [], "staff-*": ["staff"], "broken": []})

    assert [one.name for one in limits.reservations] == ["course-1"]


@pytest.mark.parametrize("gres", ["gpu:1,x", "a b", "a\n", "", "$(id)"])
def test_gres_that_would_be_more_than_one_are_refused(gres: str) -> None:
    with pytest.raises(TraitError):
        OffersCluster(gres=[gres])


def test_what_a_job_asks_for_is_written_as_slurm_reads_it() -> None:
    offers = OffersCluster(gres=["kvm:1"])

    assert offers.write_gres(Gpus(model="t4", count=2)) == "gpu:t4:2,kvm:1"
    assert offers.write_gres(Gpus(model="gpu", count=1)) == "gpu:1,kvm:1"
    assert offers.write_gres(Gpus(count=2)) == "gpu:2,kvm:1"
    assert offers.write_gres(None) == "kvm:1"


# What a start is refused for


def test_without_a_choice_a_desktop_gets_the_first_partition_in_which_it_can_run() -> None:
    limits = limits_of(partitions={"short": [], "gpu": [], "desktop": []})

    assert check({}, limits).partition == "gpu"
    assert check({"cpus": 4, "gpu": "t4:2"}, limits).partition == "gpu"
    assert check({"memory": "8 GiB"}, limits).partition == "desktop"
    assert "partition" not in check({}, limits).stored()
    assert check({"partition": "desktop"}, limits).stored()["partition"] == "desktop"


def test_a_desktop_lasts_no_longer_than_its_partition_lets_it() -> None:
    """Slurm ends jobs without a word to their guests, so the session's own clock comes first."""
    chosen = check({"partition": "desktop", "lifetime": "1 h"})

    assert chosen.max_lifetime_s == 4 * 3600 - 600
    assert check({"partition": "gpu"}).max_lifetime_s == 12 * 3600
    assert refusal({"partition": "desktop", "lifetime": "8 h"}) == {
        "partition": "In the partition 'desktop' a desktop lasts at most 3 h 50 min; 8 h were asked for."
    }


def test_a_usual_time_that_is_too_long_is_made_as_long_as_there_is() -> None:
    limits = limits_of(cluster(reserve("course", end_s=3000)), reservations={"*": []})

    options = check({"reservation": "course", "partition": "desktop"}, limits)

    assert 3000 - 670 <= options.lifetime_s <= 3000 - 659
    assert options.max_lifetime_s == options.lifetime_s


@pytest.mark.parametrize(
    ("options", "field", "sentence"),
    [
        (
            {"partition": "none"},
            "partition",
            "The option 'partition' is 'none'; it is one of 'desktop', 'short' or 'gpu'.",
        ),
        (
            {"partition": "short"},
            "partition",
            "There is too little time for a desktop in the partition 'short'.",
        ),
        (
            {"partition": "gpu", "memory": "8 GiB"},
            "partition",
            "In the partition 'gpu' a desktop's job has at most 5.859 GiB of memory; it needs 8.8 GiB.",
        ),
        (
            {"partition": "desktop", "cpus": 8},
            "partition",
            "In the partition 'desktop' a desktop has at most 4 CPUs; it needs 8.",
        ),
        (
            {"partition": "desktop", "memory": "8 GiB", "gpu": "t4"},
            "partition",
            "No node of the partition 'desktop' has such a desktop's GPUs (t4), CPUs and memory.",
        ),
        (
            {"reservation": "none"},
            "reservation",
            "The option 'reservation' is 'none'; there is none that you may use.",
        ),
    ],
)
def test_what_can_never_run_is_refused_with_a_sentence(
    options: dict[str, object], field: str, sentence: str
) -> None:
    assert refusal(options) == {field: sentence}


def test_a_desktop_that_fits_into_no_partition_reads_why() -> None:
    (problem,) = refusal({"cpus": 8}, limits_of(partitions={"gpu": [], "desktop": []})).values()

    assert problem == (
        "There is no partition for this desktop. In the partition 'gpu' a desktop has at most 4 CPUs; it "
        "needs 8. In the partition 'desktop' a desktop has at most 4 CPUs; it needs 8."
    )


def test_who_may_use_no_partition_reads_so() -> None:
    assert refusal({}, limits_of(partitions={"gpu": ["staff"]})) == {
        "partition": "This cluster has no partition for desktops that you may use."
    }


def test_a_partition_that_is_down_or_for_reservations_only_takes_nothing() -> None:
    down = cluster(partitions=PARTITIONS.replace("State=UP", "State=DRAIN"))
    reserved = cluster(partitions=PARTITIONS.replace("ReqResv=NO", "ReqResv=YES"))

    assert "takes no jobs" in refusal({"partition": "desktop"}, limits_of(down))["partition"]
    assert "reservations only" in refusal({"partition": "desktop"}, limits_of(reserved))["partition"]


def test_a_job_with_more_memory_than_goes_with_its_cpus_needs_more_cpus() -> None:
    """As Slurm itself decides."""
    gpu = next(one for one in limits_of().partitions or () if one.name == "gpu")

    assert gpu.count_fitting(Need(cpus=1, memory_mib=3500)) == 1
    assert gpu.count_fitting(Need(cpus=1, memory_mib=4000)) == 0
    assert gpu.find_lack(Need(cpus=1, memory_mib=4000)) == ""


@pytest.mark.parametrize("field", ["partition", "reservation"])
@pytest.mark.parametrize(
    "value",
    [
        "$(id)",
        "gpu --uid=0",
        "gpu\n#SBATCH",
        "gpu,short",
        "*",
        "GPU",
        "x" * 10**6,
        7,
        None,
        ["gpu"],
        {},
        True,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_anything_else_is_no_partition_and_no_reservation(field: str, value: object) -> None:
    limits = limits_of(cluster(reserve("course")), reservations={"*": []})

    (problem,) = refusal({field: value}, limits).values()

    assert problem.startswith(f"The option '{field}' is ")
    assert len(problem) < 300
    assert "\n" not in problem


@pytest.mark.parametrize("field", ["partition", "reservation"])
def test_on_one_host_there_is_none_of_the_two(field: str) -> None:
    assert list(refusal({field: "gpu"}, Limits())) == [field]


# As the form shows it


def test_the_form_says_of_each_partition_what_it_has_and_whether_the_size_fits() -> None:
    limits = limits_of()

    shown = {one["value"]: one for one in show_partitions(limits, check({"cpus": 2}), asked={})}

    assert shown["desktop"]["facts"] == (
        "at most 3 h 50 min · 7 of 16 CPUs free · 12.8 of 26.7 GiB free · 1 of 2 GPUs t4 free"
    )
    assert shown["desktop"]["fit"] == "fits now on 2 of 4 nodes"
    assert shown["gpu"]["fit"] == "fits now on its only node"
    assert shown["short"]["obstacle"] == "There is too little time for a desktop in the partition 'short'."
    assert str(shown["short"]["facts"]).startswith("at most 2 GiB for a job · at most 2 CPUs")


def test_what_is_not_known_now_is_not_told_as_if_it_were_so() -> None:
    limits = limits_of()
    old = replace(limits, partitions=tuple(replace(one, is_current=False) for one in limits.partitions or ()))

    shown = show_partitions(old, check({}), asked={"partition": "gpu"})

    assert shown[0]["facts"] == "at most 3 h 50 min"
    assert {one["fit"] for one in shown} == {"the cluster does not say what is free"}
    assert [one["value"] for one in shown if one["selected"]] == ["gpu"]


def test_a_reservation_is_shown_with_its_time() -> None:
    limits = limits_of(cluster(reserve("a") + reserve("b", begin_s=3600, end_s=9000)), reservations={"*": []})

    labels = [one["label"] for one in show_reservations(limits, asked="a")]

    assert labels == ["a (ends in 2 h)", "b (begins in 1 h)"]


# What Slurm prints


@pytest.mark.parametrize(
    ("listed", "nodes"),
    [
        ("n[1-3,7],login", ["n1", "n2", "n3", "n7", "login"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("(null)", []),
        ("", []),
        ("n[", []),
        ("n[3-1]", []),
    ],
)
def test_lists_of_nodes_are_written_out(listed: str, nodes: list[str]) -> None:
    assert list(expand_nodes(listed)) == nodes


def test_a_list_of_nodes_that_would_fill_the_memory_is_cut() -> None:
    assert sum(1 for _ in expand_nodes("n[1-999999999]")) < 100_000


@pytest.mark.parametrize("parse", [parse_rules, parse_reservations])
def test_an_answer_that_is_cut_off_is_refused(parse: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="cut off"):
        parse(PARTITIONS[:-30])


@given(st.text(max_size=300).map(lambda text: text + "\n"))
def test_any_other_answer_has_no_partitions_or_reservations(text: str) -> None:
    for found in (parse_rules(text), parse_reservations(text)):
        assert not found or "Name=" in text


def test_columns_that_nobody_knows_are_not_read_and_missing_ones_are_no_limits() -> None:
    assert parse_rules("PartitionName=p Colour=red MaxCPUsPerNode=some MaxMemPerNode=\n") == {"p": Rules()}


def test_what_wakes_runs_where_it_is_asked_to_whatever_else_stands_in_the_form() -> None:
    """A form has fields of a new desktop too, which do not count then."""
    form = {"machine": ["debian"], "cpus": ["2"], "sleeping": ["wake"], "kept_lifetime": ["1800"]}

    options = unpack_form({**form, "partition": ["gpu"], "reservation": [""]})

    assert options == {"sleeping": "wake", "lifetime": "1800", "partition": "gpu"}
