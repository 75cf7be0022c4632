"""The one check of options, without a hub."""

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qemuspawner.account import Sudo
from qemuspawner.hub.form.fields import show
from qemuspawner.hub.form.options import (
    Options,
    RefusedOptionsError,
    allowed_machines,
    check_options,
)
from qemuspawner.hub.limits import Limits
from qemuspawner.machine import Allow, Image, Machine, Mib, Preset, Seconds

MACHINE = Machine(id="debian", name="Debian", image=Image(file="/nowhere/disk.raw", format="raw"))
OTHER = msgspec.structs.replace(MACHINE, id="other", name="Other")


def check(options: dict[str, Any], *machines: Machine, limits: Limits | None = None) -> Options:
    return check_options(
        options,
        machines={machine.id: machine for machine in machines or (MACHINE,)},
        limits=limits or Limits(),
        startable=False,
    )


def problems(options: dict[str, Any], *machines: Machine, limits: Limits | None = None) -> dict[str, str]:
    with pytest.raises(RefusedOptionsError) as refusal:
        check(options, *machines, limits=limits)
    return refusal.value.problems


def test_omitted_options_take_the_defaults_of_the_only_machine() -> None:
    assert check({}).stored() == {
        "machine": "debian",
        "cpus": 1,
        "memory": 2048,
        "lifetime": 8 * 3600,
        "profile": "Debian",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"machine": "debian", "cpus": 2, "memory": 4096, "lifetime": 5400},
        {"machine": "debian", "cpus": "2", "memory": "4 GiB", "lifetime": "1.5 h"},
        {"machine": "debian", "cpus": " 2 ", "memory": "4096", "lifetime": "90min"},
    ],
)
def test_numbers_and_text_mean_the_same(options: dict[str, Any]) -> None:
    checked = check(options)

    assert (checked.cpus, checked.memory_mib, checked.lifetime_s) == (2, 4096, 5400)


def test_stored_options_are_accepted_again() -> None:
    stored = check({"cpus": 2, "lifetime": "2 h"}).stored()

    assert check(stored).stored() == stored


MIB = "offers 1 GiB, 2 GiB or 4 GiB"
BAD_VALUES = [
    ("cpus", 3, "'3'", "offers 1, 2 or 4"),
    ("cpus", 0, "'0'", "offers 1, 2 or 4"),
    ("cpus", -1, "'-1'", "offers 1, 2 or 4"),
    ("cpus", True, "'True'", "offers 1, 2 or 4"),
    ("cpus", 2.0, "'2.0'", "offers 1, 2 or 4"),
    ("cpus", None, "'None'", "offers 1, 2 or 4"),
    ("cpus", [2], "'[2]'", "offers 1, 2 or 4"),
    ("cpus", {"a": 1}, "{'a': 1}", "offers 1, 2 or 4"),
    ("cpus", "2,foo=bar", "'2,foo=bar'", "offers 1, 2 or 4"),
    ("cpus", "٢", "'٢'", "offers 1, 2 or 4"),
    ("cpus", "1" * 1_000_000, "111…'", "offers 1, 2 or 4"),
    ("cpus", 10**4000, "'1000", "offers 1, 2 or 4"),
    ("memory", "3 GiB", "'3 GiB'", MIB),
    ("memory", "2 GiB,slots=4", "'2 GiB,slots=4'", MIB),
    ("memory", "<script>", "'<script>'", MIB),
    ("memory", float("nan"), "'nan'", MIB),
    ("memory", 1e300, "'1e+300'", MIB),
    ("memory", "x" * 1_000_000, "xxx…'", MIB),
    ("lifetime", 0, "'0'", "lasts from 1 min to 2 d"),
    ("lifetime", 59, "'59'", "lasts from 1 min to 2 d"),
    ("lifetime", "3 d", "'3 d'", "lasts from 1 min to 2 d"),
    ("lifetime", "-5 h", "'-5 h'", "lasts from 1 min to 2 d"),
    ("lifetime", "../../etc", "'../../etc'", "lasts from 1 min to 2 d"),
    ("lifetime", "8 h\r\nSet-Cookie: a", "'8 h\\r\\nSet-Cookie: a'", "lasts from 1 min to 2 d"),
    ("machine", "../debian", "'../debian'", "one of 'debian'"),
    ("machine", "", "''", "one of 'debian'"),
    ("machine", ["debian"], "['debian']", "one of 'debian'"),
    ("machine", 7, "'7'", "one of 'debian'"),
    ("machine", "\u202enaibed\x00", "'\\u202enaibed\\x00'", "one of 'debian'"),
    ("machine", "\ud800", "'\\ud800'", "one of 'debian'"),
]


@pytest.mark.parametrize(("field", "value", "shown", "bound"), BAD_VALUES)
def test_a_bad_value_is_refused_with_field_value_and_bound(
    field: str, value: object, shown: str, bound: str
) -> None:
    [(named, sentence)] = problems({field: value}).items()

    assert (named, sentence[-1]) == (field, ".")
    assert f"The option '{field}' is " in sentence
    assert shown in sentence
    assert bound in sentence
    assert len(sentence) < 250
    assert sentence.isprintable()


def test_every_problem_is_told_at_once() -> None:
    found = problems({"cpus": 9, "memory": "much", "lifetime": 1, "colour": "red", "profile": "ignored"})

    assert list(found) == ["'colour'", "cpus", "memory", "lifetime"]


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    assert problems({"run\nas": 1}) == {
        "'run\\nas'": "There is no option 'run\\nas'; the options are machine, preset, cpus, memory, gpu, "
        "lifetime, where, partition, reservation, name, notes, keyboard, resolution, script, proposal, "
        "sleeping, branch, invite, terms and setting."
    }


def test_a_thousand_unknown_options_make_a_short_answer() -> None:
    assert len(problems({f"option{number}": 1 for number in range(1000)})) == 8


def test_without_a_machine_the_choice_is_named() -> None:
    assert problems({}, MACHINE, OTHER) == {
        "machine": "The option 'machine' is missing; it is one of 'debian' or 'other'."
    }


def test_who_may_start_nothing_is_told_so() -> None:
    with pytest.raises(RefusedOptionsError, match="no machine that you may start"):
        check_options({}, machines={}, limits=Limits())


def test_the_administrators_limit_cuts_the_machines_lifetime() -> None:
    limits = Limits(lifetime_s=7200)

    assert check({}, limits=limits).lifetime_s == 7200
    assert "lasts from 1 min to 2 h" in problems({"lifetime": 7201}, limits=limits)["lifetime"]


def test_a_machine_without_its_image_says_what_the_administrator_does() -> None:
    with pytest.raises(RefusedOptionsError, match=r"'disk.raw' is missing; the administrator puts it"):
        check_options({}, machines={"debian": MACHINE}, limits=Limits())


@pytest.mark.parametrize(
    ("allow", "is_allowed"),
    [
        (Allow(), True),
        (Allow(users=("alice",)), True),
        (Allow(users=("bob",)), False),
        (Allow(groups=("physics",)), True),
        (Allow(groups=("chemistry",)), False),
        (Allow(users=("bob",), groups=("physics",)), True),
    ],
)
def test_a_machine_is_for_the_users_and_groups_it_names(allow: Allow, is_allowed: bool) -> None:
    machine = msgspec.structs.replace(MACHINE, allow=allow)

    allowed = allowed_machines({"debian": machine}, user="alice", groups={"physics", "staff"})

    assert bool(allowed) is is_allowed


def test_a_hidden_machine_is_for_nobody() -> None:
    hidden = msgspec.structs.replace(MACHINE, hidden=True)

    assert allowed_machines({"debian": hidden}, user="alice", groups=()) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


# Hypothesis writes its table of Unicode at the first use, in a fresh clone.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["machine", "cpus", "memory", "lifetime", "profile", "x"]), JSON))
def test_anything_is_either_options_or_a_refusal(options: dict[str, Any]) -> None:
    try:
        checked = check(options)
    except RefusedOptionsError as exc:
        assert exc.message.isprintable()
    else:
        assert check(checked.stored()) == checked


def test_a_value_is_shown_short_and_on_one_line() -> None:
    assert show("a\nb\x1b[31m" + "c" * 100) == "'a\\nb\\x1b[31m" + "c" * 52 + "…'"


CAPABLE = msgspec.structs.replace(
    MACHINE,
    agent=True,
    home="/home/user",
    display="virtio",
    presets=(Preset(name="Large", cpus=4, memory=Mib(4096), lifetime=Seconds(86400)), Preset(name="Plain")),
)


def test_a_preset_says_what_is_not_asked_for() -> None:
    alone = check({"preset": "Large"}, CAPABLE)
    mixed = check({"preset": "Large", "cpus": 1}, CAPABLE)
    plain = check({"preset": "Plain"}, CAPABLE)

    assert (alone.cpus, alone.memory_mib, alone.lifetime_s) == (4, 4096, 86400)
    assert (mixed.cpus, mixed.memory_mib, mixed.lifetime_s) == (1, 4096, 86400)
    assert (plain.cpus, plain.memory_mib, plain.lifetime_s) == (1, 2048, 8 * 3600)


def test_a_preset_lasts_no_longer_than_is_allowed() -> None:
    assert check({"preset": "Large"}, CAPABLE, limits=Limits(lifetime_s=7200)).lifetime_s == 7200


@pytest.mark.parametrize(
    ("machine", "bound"), [(CAPABLE, "'Debian' offers 'Large' or 'Plain'."), (MACHINE, "'Debian' has none.")]
)
def test_an_unknown_preset_is_refused(machine: Machine, bound: str) -> None:
    assert problems({"preset": "<b>"}, machine) == {"preset": f"The option 'preset' is '<b>'; {bound}"}


def test_a_start_without_choices_stores_none_of_them() -> None:
    empty = {"name": "", "notes": "", "keyboard": "", "resolution": "", "script": ""}

    assert check(empty, CAPABLE).stored() == check({}, CAPABLE).stored()


def test_choices_are_stored_as_they_can_be_given_again() -> None:
    given = {
        "name": " Night run \U0001f468\u200d\U0001f52c ",
        "notes": "one\r\n\ttwo",
        "keyboard": "ch-fr",
        "resolution": "1280x800",
    }

    stored = check(given, CAPABLE).stored()

    assert {name: stored[name] for name in given} == {
        "name": "Night run \U0001f468\u200d\U0001f52c",
        "notes": "one\n\ttwo",
        "keyboard": "ch-fr",
        "resolution": "1280x800",
    }
    assert check(stored, CAPABLE).stored() == stored


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("name", "x" * 81, "(it has 81 characters); a desktop's name has one line of at most 80 characters."),
        ("name", "a\nb", "(it has characters that cannot be shown); a desktop's name has one line"),
        ("name", "a\u202eb", "(it has characters that cannot be shown)"),
        ("name", ["a"], "(it is not a text)"),
        ("notes", "x" * 2001, "(it has 2001 characters); notes have at most 2000 characters."),
        ("notes", "a\x1b[31m", "(it has characters that cannot be shown)"),
        ("notes", "a\ud800", "(it has characters that cannot be shown)"),
        ("keyboard", "xx", "; a keyboard is us, gb, de, fr, es, ch or ch-fr."),
        ("keyboard", 7, "(it is not a text)"),
        ("resolution", "9x9", "; a resolution is 1024x768, "),
        ("resolution", "1280x800,foo=bar", "; a resolution is 1024x768, "),
        ("script", "#!/bin/sh\n", "; this site runs no scripts."),
    ],
)
def test_bad_choices_are_refused(field: str, value: object, bound: str) -> None:
    [(named, sentence)] = problems({field: value}, CAPABLE).items()

    assert named == field
    assert bound in sentence
    assert sentence.isprintable()


SCRIPTS = Limits(scripts=True, script_kib=1)
CLOUD_CONFIG = "#cloud-config\nruncmd: [id]\n"


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("echo", "(it does not begin so); a script begins with #! or #cloud-config and has at most 1 KiB."),
        ("#!/bin/sh\n" + "\u00e9" * 600, "(it has 1210 bytes); a script"),
        ("#!/bin/sh\n\0", "(it has characters that cannot be shown)"),
        ({"a": 1}, "(it is not a text)"),
    ],
)
def test_scripts_are_bounded(value: object, bound: str) -> None:
    assert bound in problems({"script": value}, CAPABLE, limits=SCRIPTS)["script"]


def test_a_script_keeps_its_lines() -> None:
    checked = check({"script": "#!/bin/sh\r\necho  a\r\n\r\n\techo b"}, CAPABLE, limits=SCRIPTS)

    assert checked.script == "#!/bin/sh\necho  a\n\n\techo b\n"


@pytest.mark.parametrize(
    ("has_cloud_init", "machine_sudo", "hub_sudo", "why"),
    [
        (False, True, "yes", "('Debian' has no cloud-init)"),
        (True, False, "", "(cloud-init is root, which you cannot be in 'Debian')"),
        (True, True, "no", "(cloud-init is root, which you cannot be in 'Debian')"),
    ],
)
def test_a_cloud_config_needs_cloud_init_and_its_rights(
    has_cloud_init: bool, machine_sudo: bool, hub_sudo: Sudo, why: str
) -> None:
    machine = msgspec.structs.replace(CAPABLE, cloud_init=has_cloud_init, sudo=machine_sudo)
    limits = dataclasses.replace(SCRIPTS, sudo=hub_sudo)

    assert why in problems({"script": CLOUD_CONFIG}, machine, limits=limits)["script"]


@pytest.mark.parametrize(("machine_sudo", "hub_sudo"), [(True, ""), (False, "yes")])
def test_a_cloud_config_is_accepted(machine_sudo: bool, hub_sudo: Sudo) -> None:
    machine = msgspec.structs.replace(CAPABLE, cloud_init=True, sudo=machine_sudo)

    checked = check({"script": CLOUD_CONFIG}, machine, limits=dataclasses.replace(SCRIPTS, sudo=hub_sudo))

    assert checked.script == CLOUD_CONFIG


def test_a_script_needs_a_home_to_run_in_or_root() -> None:
    machine = msgspec.structs.replace(CAPABLE, home="")
    script = {"script": "#!/bin/sh\n"}

    assert "in whose home it would run" in problems(script, machine, limits=SCRIPTS)["script"]
    assert check(script, machine, limits=dataclasses.replace(SCRIPTS, sudo="yes")).script


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("keyboard", "de", "'Debian' has no guest agent for it"),
        ("script", "#!/bin/sh\n", "'Debian' has no guest agent for it"),
        ("resolution", "1280x800", "the screen of 'Debian' has a size of its own"),
    ],
)
def test_a_machine_that_cannot_do_it_says_so(field: str, value: str, why: str) -> None:
    assert problems({field: value}, limits=SCRIPTS)[field].endswith(f"; {why}.")
