"""What Grid Engine's and Torque's commands print is understood, and what they never print is refused."""

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuspawner.hub.batch.qsub import Order, read_tag, tag_of
from qemuspawner.hub.batch.script import make_script
from qemuspawner.hub.gridengine import jobs as gridengine
from qemuspawner.hub.gridengine.commands import GridEngine
from qemuspawner.hub.torque import jobs as torque
from qemuspawner.hub.torque.commands import Torque

# As SGE 8.1.9 wrote it for `qstat -xml -r`, with jobs of more states.
QSTAT_XML = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>1</JB_job_number>
      <JAT_prio>0.50000</JAT_prio>
      <JB_name>desktop-aa</JB_name>
      <JB_owner>qemuspawner</JB_owner>
      <state>r</state>
      <JAT_start_time>2026-11-28T23:31:06</JAT_start_time>
      <queue_name>desktop.q@n1.example.org</queue_name>
      <slots>2</slots>
      <full_job_name>desktop-aa-bb</full_job_name>
      <requested_pe name="smp">2</requested_pe>
      <granted_pe name="smp">2</granted_pe>
      <hard_request name="h_rt" resource_contribution="0.000000">600</hard_request>
      <binding>NONE</binding>
    </job_list>
    <job_list state="running">
      <JB_job_number>2</JB_job_number>
      <JB_name>desktop-cc</JB_name>
      <state>dr</state>
      <queue_name>desktop.q@n2</queue_name>
    </job_list>
    <job_list state="running">
      <JB_job_number>3</JB_job_number>
      <JB_name>desktop-dd</JB_name>
      <state>S</state>
      <queue_name>desktop.q@n2</queue_name>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>4</JB_job_number>
      <JB_name>desktop-ee</JB_name>
      <state>qw</state>
      <queue_name></queue_name>
    </job_list>
    <job_list state="pending">
      <JB_job_number>5</JB_job_number>
      <JB_name>desktop-ff</JB_name>
      <state>hqw</state>
      <queue_name></queue_name>
    </job_list>
    <job_list state="pending">
      <JB_job_number>6</JB_job_number>
      <JB_name>desktop-gg</JB_name>
      <state>Eqw</state>
      <queue_name></queue_name>
    </job_list>
  </job_info>
</job_info>
"""

# As Torque 6 writes it for `qstat -x`, on one line.
QSTAT_X = (
    "<Data>"
    "<Job><Job_Id>7.head</Job_Id><Job_Name>desktop-aa-bb</Job_Name><Job_Owner>svc@head.example.org</Job_Owner>"
    "<resources_used><mem>4104kb</mem></resources_used><job_state>R</job_state><queue>batch</queue>"
    "<exec_host>n3/0-1</exec_host><Resource_List><nodes>1:ppn=2</nodes></Resource_List></Job>"
    "<Job><Job_Id>8.head</Job_Id><Job_Name>desktop-cc</Job_Name><Job_Owner>svc@head</Job_Owner>"
    "<job_state>Q</job_state><queue>batch</queue></Job>"
    "<Job><Job_Id>9.head</Job_Id><Job_Name>other</Job_Name><Job_Owner>bob@head</Job_Owner>"
    "<job_state>C</job_state><exec_host>n1/0+n1/1</exec_host><exit_status>271</exit_status></Job>"
    "<Job><Job_Id>10.head</Job_Id><Job_Name>other</Job_Name><Job_Owner>svc@head</Job_Owner>"
    "<job_state>?</job_state></Job>"
    "</Data>\n"
)

ORDER = Order(
    tag="desktop-aa-bb", cpus=2, memory_mib=4608, time_s=4200, queue="desktop.q", log="/var/log/desktops"
)


def test_jobs_of_grid_engine_are_told_apart_by_what_becomes_of_them() -> None:
    jobs = gridengine.parse_jobs(QSTAT_XML)

    assert {number: (job.phase, job.node) for number, job in jobs.items()} == {
        "1": ("running", "n1.example.org"),
        "2": ("running", "n2"),
        "3": ("running", "n2"),
        "4": ("pending", ""),
        "5": ("pending", ""),
        "6": ("pending", ""),
    }
    assert [number for number, job in jobs.items() if job.never_runs] == ["6"]
    assert [number for number, job in jobs.items() if job.is_paused] == ["3"]
    assert jobs["1"].name == "desktop-aa-bb"
    assert str(jobs["5"].wait).startswith("The job is held")
    assert jobs["6"].ending == "The cluster could not start the desktop's job (Eqw)."


def test_jobs_of_torque_are_told_apart_by_what_becomes_of_them() -> None:
    jobs = torque.parse_jobs(QSTAT_X)

    assert {number: (job.phase, job.node, job.owner) for number, job in jobs.items()} == {
        "7.head": ("running", "n3", "svc"),
        "8.head": ("pending", "", "svc"),
        "9.head": ("over", "n1", "bob"),
        "10.head": ("unknown", "", "svc"),
    }
    assert [job.is_paused for job in torque.parse_jobs(QSTAT_X.replace(">R<", ">S<")).values()] == [
        *(True, False, False, False)
    ]
    assert jobs["9.head"].ending == "The desktop's job ended on the cluster (271)."


def test_no_jobs_are_an_empty_list() -> None:
    empty = "<?xml version='1.0'?><job_info><queue_info></queue_info><job_info></job_info></job_info>"

    assert gridengine.parse_jobs(empty) == {}
    assert torque.parse_jobs("") == {}


@pytest.mark.parametrize("listed", ["", QSTAT_XML[:-20], QSTAT_X, "error: cannot reach the master\n"])
def test_a_list_of_grid_engine_that_is_cut_off_is_not_a_shorter_list(listed: str) -> None:
    with pytest.raises(ValueError, match="list of jobs"):
        gridengine.parse_jobs(listed)


@pytest.mark.parametrize("listed", [QSTAT_X[:-20], QSTAT_XML, "qstat: cannot connect to server\n"])
def test_a_list_of_torque_that_is_cut_off_is_not_a_shorter_list(listed: str) -> None:
    with pytest.raises(ValueError, match="list of jobs"):
        torque.parse_jobs(listed)


def test_a_list_with_entities_of_its_own_is_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><job_info>&b;</job_info>'

    with pytest.raises(ValueError, match="declarations"):
        gridengine.parse_jobs(bomb)


@given(st.text(max_size=200))
def test_any_other_answer_is_refused_or_empty(text: str) -> None:
    for parse in (gridengine.parse_jobs, torque.parse_jobs):
        try:
            found = parse(text)
        except ValueError:
            continue
        assert found == {}


def test_jobs_are_known_again_by_their_names() -> None:
    name = tag_of("0123456789ab", "f" * 20)

    assert read_tag(name, "0123456789ab") == "f" * 20
    assert read_tag(name, "another-hub") is None
    assert read_tag("STDIN", "0123456789ab") is None


def test_what_is_asked_of_grid_engine() -> None:
    engine = GridEngine(memory="m_mem_free", parallel="smp")

    assert engine.arguments(ORDER) == [
        *("-terse", "-w", "e", "-N", "desktop-aa-bb", "-r", "n", "-notify", "-S", "/bin/sh", "-wd", "/"),
        *("-j", "y", "-o", "/var/log/desktops", "-l", "h_rt=4200,s_rt=3900,m_mem_free=4608M"),
        *("-q", "desktop.q", "-pe", "smp", "2"),
    ]


def test_what_is_asked_of_torque() -> None:
    assert Torque().arguments(ORDER) == [
        *(
            "-N",
            "desktop-aa-bb",
            "-r",
            "n",
            "-S",
            "/bin/sh",
            "-d",
            "/",
            "-j",
            "oe",
            "-o",
            "/var/log/desktops",
        ),
        *("-l", "nodes=1:ppn=2,mem=4608mb,walltime=4200", "-q", "desktop.q"),
    ]


def test_a_script_names_a_file_and_no_secret() -> None:
    assert make_script(["/bin/a b", "--x"], PurePath("/state/it's/ab")).splitlines() == [
        "#!/bin/sh",
        """exec 3<'/state/it'"'"'s/ab' && rm -f -- '/state/it'"'"'s/ab' && exec '/bin/a b' --x --job 3""",
    ]
