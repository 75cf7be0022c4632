"""The sixteen holes that were found in the predecessor, each with the tests that keep it shut here.

A test that is renamed or lost is missed: the list is checked against the files.
"""

import ast
import itertools
from functools import cache
from pathlib import Path

import pytest

from qemuspawner.paths import session_id

HERE = Path(__file__).parent

# What went wrong there, and which of our tests show that it does not here.
HOLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "D1": (
        "an old link opened the next user's desktop",
        (
            "session/test_access.py::test_a_ticket_is_worth_nothing_to_somebody_else",
            "proof/test_s03_access.py::test_each_route_of_a_session_answers_each_person_as_its_row_says",
            "proof/test_s12_revocation.py::test_who_is_let_in_no_more_is_out",
        ),
    ),
    "D2": (
        "a guest opened other users' desktops through the host's loopback",
        (
            "proof/test_s01_guest_network.py::test_none_leads_nowhere",
            "proof/test_s01_guest_network.py::test_the_ports_of_a_guest_are_nobody_elses",
            "proof/test_s10_walls.py::test_a_guest_behind_fewer_walls_never_runs",
            "session/test_lifecycle.py::test_no_network_port_but_the_sessions_own_is_opened",
            "proof/test_s11_second_account.py::test_nothing_of_a_desktop_opens_to_another_account",
        ),
    ),
    "D3": (
        "the form's values became options of QEMU's command line",
        (
            "qemu/test_command.py::test_a_path_with_commas_stays_one_value",
            "hub/test_options.py::test_a_bad_value_is_refused_with_field_value_and_bound",
            "hub/test_options.py::test_anything_is_either_options_or_a_refusal",
        ),
    ),
    "D4": (
        "any visitor ran a script on the host",
        (
            "hub/test_options.py::test_scripts_are_bounded",
            "session/test_first_start.py::test_a_script_is_roots_only_for_who_may_become_root",
            "proof/test_s11_second_account.py::test_the_command_line_that_everybody_reads_holds_no_secret",
        ),
    ),
    "D5": (
        "anybody stopped or extended a session by a link",
        (
            "proof/test_s03_access.py::test_each_route_of_a_session_answers_each_person_as_its_row_says",
            "proof/test_s03_access.py::test_every_method_of_every_route_has_a_row",
        ),
    ),
    "D6": (
        "any user ended all sessions",
        (
            "hub/test_kept.py::test_nobody_deletes_what_another_keeps",
            "hub/test_machines_api.py::test_nobody_but_administrators_gets_anything",
        ),
    ),
    "D7": (
        "of two starts at once one got the other's desktop, or lost its disk",
        (
            "proof/test_r06_admission.py::test_a_full_host_is_never_promised_again",
            "session/test_directory.py::test_a_session_that_starts_while_it_is_swept_waits_and_harms_nobody",
            "session/test_sleeping.py::test_of_two_wakes_at_once_one_has_the_desktop_and_nothing_is_lost",
        ),
    ),
    "D8": (
        "a restart of the web server ended all sessions and lost their disks",
        ("proof/test_r03_hub_restart.py::test_desktops_and_their_viewers_outlive_the_hub",),
    ),
    "D9": (
        "the form made the server ask any other server",
        (
            "hub/test_machines_api.py::test_on_the_hub_nobody_reaches_for_the_host",
            "machines/test_fetch.py::test_urls_that_are_none",
        ),
    ),
    "D10": (
        "folders of the host were in every guest, and passwords in files",
        (
            "qemu/test_walls.py::test_qemu_sees_its_own_files_and_no_program",
            "qemu/test_secrets.py::test_nothing_of_the_environment_reaches_the_jail",
            "session/test_lifecycle.py::test_a_session_is_for_its_account_alone",
        ),
    ),
    "D11": (
        "a list of two forbidden GPUs forbade none",
        ("test_gpus.py::test_only_what_is_allowed_and_not_denied_by_address_or_model_is_given",),
    ),
    "D12": (
        "a lifetime of 0, meant as endless, ended every session",
        (
            "hub/test_options.py::test_a_bad_value_is_refused_with_field_value_and_bound",
            "machines/test_catalogue.py::test_a_problem_names_key_and_reason",
            "hub/test_options.py::test_the_administrators_limit_cuts_the_machines_lifetime",
            "session/test_clocks.py::test_a_session_that_may_idle_never_ends_for_it",
        ),
    ),
    "D13": (
        "one file that could not be read broke every page, and others' files were deleted",
        (
            "hub/test_kept.py::test_a_damaged_manifest_breaks_no_page",
            "hub/test_kept.py::test_nothing_is_deleted_through_a_link",
            "proof/test_s11_second_account.py::test_a_sweep_follows_no_link_of_another_account",
        ),
    ),
    "D14": (
        "what was typed came back as tags, and visitors read the program's errors",
        (
            "hub/test_form.py::test_names_and_descriptions_are_escaped",
            "session/test_page.py::test_a_hostile_name_is_only_text",
            "session/test_page_troubles.py::test_what_is_wrong_is_said_until_it_is_over",
        ),
    ),
    "D15": (
        "a user's name was taken as a pattern: 'bo' was shown to 'bob'",
        (
            "hub/test_kept.py::test_another_users_checkpoint_does_not_exist",
            "hub/test_quotas.py::test_what_is_said_of_a_user_by_name_counts_alone",
            "test_predecessor_holes.py::test_names_that_hold_each_other_share_nothing",
        ),
    ),
    "D16": (
        "logins were passed by: an inverted check, a header, an empty name",
        (
            "hub/test_account.py::test_a_user_named_root_does_not_become_root",
            "session/test_people.py::test_a_service_with_the_owners_name_is_not_the_owner",
            "proof/test_s03_access.py::test_a_token_in_the_url_is_refused_everywhere",
        ),
    ),
}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((HERE / file).read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def test_there_are_sixteen() -> None:
    assert list(HOLES) == [f"D{number}" for number in range(1, 17)]


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_of_the_predecessor_has_its_tests(hole: str) -> None:
    _, tests = HOLES[hole]

    missing = [test for test in tests if test.split("::")[1] not in names_in(test.split("::")[0])]

    assert tests
    assert not missing


def test_names_that_hold_each_other_share_nothing() -> None:
    """Neither a name within another nor one that reads as a pattern, nor a server's name run together."""
    names = ["bo", "bob", "BOB", "b.b", "b*", ".*", "bo/b", "bo\n", ""]
    pairs = list(itertools.product(names, names))

    assert len({session_id(user, server) for user, server in pairs}) == len(pairs)
