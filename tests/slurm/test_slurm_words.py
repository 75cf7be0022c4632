"""What Slurm's commands print is understood, and what they never print is refused."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuspawner.batch import JobDocument, read_document, write_document
from qemuspawner.hub.slurm.jobs import (
    Place,
    describe_end,
    describe_place,
    describe_wait,
    parse_jobs,
    parse_places,
)
from qemuspawner.hub.slurm.nodes import parse_cluster
from qemuspawner.hub.slurm.script import make_arguments
from qemuspawner.hub.slurm.words import parse_duration, parse_moment, write_duration

SINFO = """\
n1|desktop*|idle|0/4/0/4|6000|0|(null)|gpu:0|198.18.77.11|4:00:00|
n1|short|idle|0/4/0/4|6000|0|(null)|gpu:0|198.18.77.11|5:00|
n2|desktop*|mix|3/1/0/4|6000|4500|(null)|gpu:0|198.18.77.12|4:00:00|
n3|desktop*|mix|2/2/0/4|6000|400|gpu:t4:2(S:0),gpu:a100:1|gpu:t4:1(IDX:0),gpu:a100:0(IDX:N/A)|198.18.77.13|4:00:00|
n3|gpu|mix|2/2/0/4|6000|400|gpu:t4:2(S:0),gpu:a100:1|gpu:t4:1(IDX:0),gpu:a100:0(IDX:N/A)|198.18.77.13|infinite|
n4|desktop*|down*|0/0/4/4|6000|0|(null)|gpu:0|198.18.77.14|4:00:00|
"""

SQUEUE = """\
7|RUNNING|n1|None|2026-11-28T19:00:00|2026-11-28T20:00:00
8|PENDING|n/a|Priority|N/A|N/A
9|PENDING|n/a|PartitionTimeLimit|N/A|N/A
10|NODE_FAIL|n2|NodeDown|2026-11-28T19:00:00|2026-11-28T19:10:00
11|BRAND_NEW|n2|None|N/A|N/A
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5:00", 300),
        ("30", 1800),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-02:03:04", 93784),
        ("1-2:30", 95400),
        ("infinite", None),
        ("UNLIMITED", None),
    ],
)
def test_limits_are_read_as_slurm_means_them(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "n/a", "5:00:00:00", "-1", "1 h", "٣", "1-", "9" * 30])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time limit"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**8))
def test_a_limit_that_is_written_is_long_enough_and_not_a_minute_more(seconds: int) -> None:
    written = parse_duration(write_duration(seconds))

    assert written is not None
    assert seconds <= written < seconds + 60 or written == 60


def test_a_moment_is_in_this_hosts_time_zone() -> None:
    assert parse_moment("2026-11-28T19:00:00") == time.mktime((2026, 11, 28, 19, 0, 0, 0, 0, -1))
    assert parse_moment("N/A") is None


def test_jobs_are_told_apart_by_what_becomes_of_them() -> None:
    jobs = parse_jobs(SQUEUE)

    assert {number: job.phase for number, job in jobs.items()} == {
        "7": "running",
        "8": "pending",
        "9": "pending",
        "10": "over",
        "11": "unknown",
    }
    assert [number for number, job in jobs.items() if job.never_runs] == ["9"]
    assert jobs["8"].node == ""
    assert describe_wait(jobs["8"]) == "Waiting: other jobs come first"
    assert describe_end(jobs["10"]) == "The cluster lost the node n2 that the desktop ran on."


@pytest.mark.parametrize(
    ("phase", "states"),
    [
        ("pending", "PENDING CONFIGURING RESV_DEL_HOLD SPECIAL_EXIT REQUEUE_FED"),
        ("running", "RUNNING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING COMPLETING"),
        (
            "over",
            "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REQUEUED"
            " REQUEUE_HOLD REVOKED TIMEOUT",
        ),
        ("unknown", "POWER_UP_NODE LAUNCH_FAILED"),
    ],
)
def test_every_state_of_the_manual_has_its_meaning(phase: str, states: str) -> None:
    listed = "".join(f"{n}|{state}|n1|Priority|N/A|N/A\n" for n, state in enumerate(states.split(), start=1))

    assert {job.state: job.phase for job in parse_jobs(listed).values()} == dict.fromkeys(
        states.split(), phase
    )


@pytest.mark.parametrize(
    ("state", "reason", "sentence"),
    [
        ("NODE_FAIL", "NodeDown", "The cluster lost the node n1 that the desktop ran on."),
        ("BOOT_FAIL", "None", "The cluster lost the node n1 that the desktop ran on."),
        ("OUT_OF_MEMORY", "OutOfMemory", "The desktop's job took more memory than it may, and was ended."),
        ("TIMEOUT", "TimeLimit", "The time that the cluster gave the desktop is over."),
        ("DEADLINE", "DeadLine", "The time that the cluster gave the desktop is over."),
        ("PREEMPTED", "None", "The cluster needed the desktop's place for a job that comes first."),
        ("REQUEUED", "None", "The cluster needed the desktop's place for a job that comes first."),
        ("REQUEUE_HOLD", "None", "The cluster needed the desktop's place for a job that comes first."),
        ("CANCELLED", "None", "The desktop's job was cancelled on the cluster."),
        ("FAILED", "NonZeroExitCode", "The desktop's job ended on the cluster (FAILED)."),
        (
            "PENDING",
            "PartitionTimeLimit",
            "The cluster can never run this desktop as it was asked for (PartitionTimeLimit).",
        ),
        (
            "PENDING",
            "QOSMaxMemoryPerJob",
            "The cluster can never run this desktop as it was asked for (QOSMaxMemoryPerJob).",
        ),
    ],
)
def test_why_a_job_is_over_is_said(state: str, reason: str, sentence: str) -> None:
    job = parse_jobs(f"7|{state}|n1|{reason}|N/A|N/A\n")["7"]

    assert job.ending == sentence
    assert (job.phase == "over") != job.never_runs


def test_each_partition_has_a_queue_of_its_own() -> None:
    places = parse_places("4|desktop\n9|gpu\n7|desktop\n")

    assert places == {
        "4": Place(place=1, of=2),
        "7": Place(place=2, of=2),
        "9": Place(place=1, of=1),
    }
    job = parse_jobs("7|PENDING|n/a|Priority|2026-11-28T19:07:10|N/A\n")["7"]
    assert job.expected_start is not None
    soon = describe_place(job, places["7"], now=job.expected_start - 430)
    assert soon == "Place 2 of 2 in the queue; Slurm expects it to start in 7 min"
    assert describe_place(job, places["7"], now=job.expected_start) == "Place 2 of 2 in the queue"


@pytest.mark.parametrize("listed", [SQUEUE[:-1], "slurm_load_jobs error: x\n", "7|RUNNING\n"])
def test_a_list_of_jobs_that_is_cut_off_is_not_a_shorter_list(listed: str) -> None:
    with pytest.raises(ValueError, match="list of jobs"):
        parse_jobs(listed)


def test_no_jobs_are_an_empty_list() -> None:
    assert parse_jobs("") == {}


def test_a_cluster_of_unlike_nodes_is_read_node_by_node() -> None:
    cluster = parse_cluster(SINFO)

    assert cluster.partitions["desktop"].is_default
    assert cluster.partitions["desktop"].nodes == ("n1", "n2", "n3", "n4")
    assert cluster.partitions["short"].max_s == 300
    assert cluster.partitions["gpu"].max_s is None
    assert cluster.nodes["n3"].gpus == {"t4": 2, "a100": 1}
    assert cluster.nodes["n3"].free_gpus == {"t4": 1, "a100": 1}
    assert cluster.nodes["n3"].address == "198.18.77.13"
    assert not cluster.nodes["n4"].in_service


@pytest.mark.parametrize(
    ("gres", "used", "free"),
    [
        ("gpu:2", "gpu:1(IDX:0)", {"gpu": 1}),
        ("gpu:3090:2(S:0-1)", "gpu:3090:2(IDX:0-1)", {"3090": 0}),
        ("gpu:a100:4(S:0,2),craynetwork:1", "gpu:a100:1(IDX:0,2),craynetwork:0", {"a100": 3}),
        ("gpu:a:1,gpu:b:1", "?", {"a": 1, "b": 1}),
        ("gpus:a:1,mygpu:2", "", {}),
        ("(null)", "gpu:0", {}),
    ],
)
def test_gpus_are_counted_by_model(gres: str, used: str, free: dict[str, int]) -> None:
    (node,) = parse_cluster(f"n1|p|idle|0/4/0/4|6000|0|{gres}|{used}|n1|1:00|\n").nodes.values()

    assert node.free_gpus == free


@pytest.mark.parametrize("state", ["down*", "drain", "maint", "idle~", "mix-", "futr", "brand_new", ""])
def test_a_state_that_says_no_or_nothing_known_is_not_in_service(state: str) -> None:
    (node,) = parse_cluster(f"n1|p|{state}|0/4/0/4|6000|0|(null)||n1|1:00|\n").nodes.values()

    assert not node.in_service


def test_a_number_that_cannot_be_read_is_nothing_free_and_the_others_count() -> None:
    cluster = parse_cluster(
        "n1|p|idle|N/A|N/A|N/A|(null)||10.0.0.1|n/a|\nn2|p|idle|0/4/0/4|6000|-|(null)||n2|later|\n"
    )

    assert [(node.free_cpus, node.free_memory_mib) for node in cluster.nodes.values()] == [(0, 0), (4, 0)]
    assert cluster.nodes["n1"].address == "10.0.0.1"
    assert cluster.partitions["p"].max_s is None


@pytest.mark.parametrize(
    "listed", [SINFO[:-20], SINFO.replace("|\n", "|new|\n"), "sinfo: error: slurm_load_partitions: x\n"]
)
def test_a_list_of_nodes_that_is_cut_off_or_has_other_columns_is_refused(listed: str) -> None:
    with pytest.raises(ValueError, match="list of nodes"):
        parse_cluster(listed)


@given(st.text(max_size=200))
def test_any_other_answer_is_refused_or_empty(text: str) -> None:
    for parse in (parse_jobs, parse_cluster):
        try:
            parse(text)
        except ValueError:
            continue
        assert not text.strip("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029") or "|" in text


def test_what_a_job_asks_for_is_a_list_of_arguments() -> None:
    arguments = make_arguments(
        session_id="abc",
        comment="x",
        cpus=2,
        memory_mib=4096,
        lifetime_s=3600,
        partition="gpu",
        gres="gpu:t4:1",
        log="/x",
    )

    assert {"--mem=4608M", "--time=70", "--no-requeue", "--export=NONE"} <= set(arguments)


def test_a_document_comes_through_a_descriptor() -> None:
    reader, writer = os.pipe()
    document = JobDocument(environment={"A": "é\n"})
    os.write(writer, write_document(document).encode())
    os.close(writer)

    assert read_document(reader) == document
