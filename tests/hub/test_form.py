"""The options form in a real hub: what people see, type and read."""

import html
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest

StartHub = Callable[..., Awaitable[hubs.Hub]]


def selected(page: str) -> dict[str, str]:
    """What the form has chosen: the machine's radio button, and the selected option of each select."""
    chosen = {}
    if radio := re.search(r'<input[^>]*value="(\w+)"[^>]*\schecked', page):
        chosen["machine"] = radio[1]
    for name, options in re.findall(r'<select[^>]*name="(\w+)"[^>]*>(.*?)</select>', page, re.DOTALL):
        chosen[name] = re.findall(r"selected>\s*(.*?)\s*</option>", options)[0]
    return chosen


def error(page: str) -> str:
    """The error above the form, as text."""
    found = re.search(r'<div class="spawn-error-msg[^>]*>(.*?)</div>', page, re.DOTALL)
    return html.unescape(found[1].strip()) if found else ""


async def test_the_form_offers_the_machines_defaults(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert selected(form.text) == {"machine": "mini", "cpus": "1", "memory": "128 MiB", "lifetime": "1 h"}


async def test_start_by_form_leads_to_the_desktop(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    answer = await hub.submit_form(alice, machine="mini", cpus="2", memory="256", lifetime="1800")
    url = await hub.wait_until_ready("alice")

    assert answer.status == 302
    assert (await alice.request("GET", url / "api")).status == 200
    assert hub.spawner("alice").user_options == {
        "machine": "mini",
        "cpus": 2,
        "memory": 256,
        "lifetime": 1800,
        "profile": "Mini",
    }


async def test_the_last_choice_is_preselected(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini", cpus="2", memory="256", lifetime="1800")
    await hub.wait_until_ready("alice")
    await hub.stop(alice)

    form = await hub.get_form(alice)

    assert selected(form.text) == {"machine": "mini", "cpus": "2", "memory": "256 MiB", "lifetime": "30 min"}


@pytest.mark.parametrize("server_name", ["", "second"])
async def test_a_refused_form_says_why_and_keeps_what_was_typed(hub: hubs.Hub, server_name: str) -> None:
    """Also for named servers, whose errors JupyterHub shows in the form of the default one."""
    alice = await hub.log_in("alice")

    answer = await hub.submit_form(
        alice, server_name=server_name, machine="mini", cpus="7", memory="256", lifetime="1800"
    )

    assert answer.status == 400
    assert error(answer.text) == "The option 'cpus' is '7'; 'Mini' offers 1 or 2."
    assert selected(answer.text) == {
        "machine": "mini",
        "cpus": "1",
        "memory": "256 MiB",
        "lifetime": "30 min",
    }
    assert 'id="qs-cpus-problem"' in answer.text
    assert 'id="qs-memory-problem"' not in answer.text


async def test_what_was_typed_is_shown_once(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini", cpus="7", memory="256")

    form = await hub.get_form(alice)

    assert selected(form.text)["memory"] == "128 MiB"


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("machine", "<script>alert(1)</script>", "'<script>alert(1)</script>'"),
        ("machine", "../mini", "'../mini'"),
        ("machine", "x" * 1_000_000, "xxx…'"),
        ("cpus", "2,foo=bar", "'2,foo=bar'"),
        ("cpus", "2\n3", "'2\\n3'"),
        ("memory", "1 PiB", "'1 PiB'"),
        ("lifetime", "30 s", "'30 s'"),
        ("colour", "red", "'colour'"),
    ],
)
async def test_a_bad_field_is_refused_and_leaves_nothing(
    hub: hubs.Hub, field: str, value: str, shown: str
) -> None:
    alice = await hub.log_in("alice")

    answer = await hub.submit_form(alice, **{"machine": "mini", field: value})

    assert answer.status == 400
    assert shown in error(answer.text)
    assert field in error(answer.text)
    assert "<script>alert" not in answer.text
    assert len(answer.text) < 100_000
    assert hub.session_folders() == []
    assert hub.spawner("alice").pid == 0
    assert hub.spawner("alice").orm_spawner.user_options is None


async def test_a_field_given_twice_is_refused(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    url = hub.url / "spawn"

    answer = await alice.request(
        "POST",
        url.with_query(_xsrf=alice.xsrf(url)),
        data=b"cpus=1&cpus=2",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert (answer.status, error(answer.text)) == (
        400,
        "The option 'cpus' is '['1', '2']' (it is not a whole number); 'Mini' offers 1 or 2.",
    )


async def test_names_and_descriptions_are_escaped(hub: hubs.Hub) -> None:
    hubs.add_machine(
        hub.machines,
        hub.state_dir,
        "nasty",
        title="<i>Nasty</i> '&",
        description="</label><script>x()</script>",
    )
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert "&lt;i&gt;Nasty&lt;/i&gt; &#39;&amp;" in form.text
    assert "<script>x()" not in form.text


async def test_a_changed_catalogue_shows_at_the_next_form(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.get_form(alice)
    hubs.add_machine(hub.machines, hub.state_dir, "second")

    form = await hub.get_form(alice)

    assert 'value="second"' in form.text


async def test_a_machine_for_others_does_not_exist(hub: hubs.Hub) -> None:
    hubs.add_machine(hub.machines, hub.state_dir, "secret", more='[allow]\nusers = ["bob"]\n')
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")

    refused = await hub.submit_form(alice, machine="secret")
    started = await hub.submit_form(bob, machine="secret")

    assert "secret" not in (await hub.get_form(alice)).text
    assert error(refused.text) == "The option 'machine' is 'secret', which is not one of 'mini'."
    assert started.status == 302


async def test_a_machine_for_a_group_is_for_its_members(hub: hubs.Hub) -> None:
    hubs.add_machine(hub.machines, hub.state_dir, "lab", more='[allow]\ngroups = ["physics"]\n')
    hub.user("alice", groups=("physics",))
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")

    assert 'value="lab"' in (await hub.get_form(alice)).text
    assert 'value="lab"' not in (await hub.get_form(bob)).text


async def test_a_machine_without_its_image_is_shown_disabled_and_refused(hub: hubs.Hub) -> None:
    hubs.add_machine(hub.machines, hub.state_dir, "bare")
    (hub.state_dir / "images/bare/disk.raw").unlink()
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)
    refused = await hub.submit_form(alice, machine="bare")

    assert re.search(r'value="bare"[^>]*\sdisabled', form.text)
    assert error(refused.text).startswith("'Bare' cannot start: 'disk.raw' is missing; the administrator")
    assert (refused.status, hub.session_folders()) == (400, [])


async def test_a_broken_machine_is_for_administrators_to_see(hub: hubs.Hub) -> None:
    (hub.machines / "broken").mkdir()
    (hub.machines / "broken" / "machine.toml").write_text("colour = 'red'\n")
    alice, admin = await hub.log_in("alice"), await hub.log_in("admin", admin=True)

    assert "For administrators" not in (await hub.get_form(alice)).text
    assert "broken" in (await hub.get_form(admin)).text
    assert selected((await hub.get_form(alice)).text)["machine"] == "mini"


async def test_without_machines_the_form_says_so(hub: hubs.Hub) -> None:
    (hub.machines / "mini" / "machine.toml").unlink()
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert "There is no machine that you may start" in form.text


async def test_a_link_fills_in_the_form_and_starts_nothing(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    form = await hub.get_form(
        alice, query="opt-machine=mini&opt-cpus=2&opt-memory=256+MiB&opt-lifetime=45+min"
    )

    assert form.status == 200
    assert error(form.text) == ""
    assert "Nothing starts before you press Start" in form.text
    assert selected(form.text) == {"machine": "mini", "cpus": "2", "memory": "256 MiB", "lifetime": "45 min"}
    assert not hub.spawner("alice").active
    assert hub.session_folders() == []


async def test_a_link_with_bad_options_says_so_at_their_fields(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice, query="opt-cpus=<b>&opt-colour=red")

    assert form.status == 200
    assert "The option &#39;cpus&#39; is &#39;&lt;b&gt;&#39;" in form.text
    assert "There is no option &#39;colour&#39;" in form.text


@pytest.mark.parametrize(
    ("suspend_on", "lifetime", "promise"),
    [
        ([], "ends", "Everything on this desktop is deleted at its end;"),
        (
            ["stop"],
            "ends",
            "When it is stopped on the hub, a desktop that can be saved <strong>sleeps for 14 d</strong>. "
            "When its lifetime is over, nobody uses it or it is shut down, "
            "<strong>everything on it is deleted;",
        ),
        (
            ["idle", "lifetime", "stop"],
            "falls asleep",
            "When its lifetime is over, nobody uses it or it is stopped on the hub, "
            "a desktop that can be saved <strong>sleeps for 14 d</strong>. "
            "When it is shut down, <strong>everything on it is deleted;",
        ),
    ],
)
async def test_the_form_promises_sleep_for_the_ends_that_have_it(
    standin: StartHub, suspend_on: list[str], lifetime: str, promise: str
) -> None:
    hub = await standin(suspend_on=suspend_on)
    alice = await hub.log_in("alice")

    form = " ".join((await hub.get_form(alice)).text.split())

    assert f"The desktop {lifetime} after this time" in form
    assert promise in form


async def test_the_administrators_lifetime_is_what_the_form_offers(standin: StartHub) -> None:
    hub = await standin(max_lifetime="40 min")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert selected(form.text)["lifetime"] == "40 min"
    assert ">1 h<" not in form.text


async def test_the_log_names_a_broken_machine_once(
    hub: hubs.Hub, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    name = f"broken-{tmp_path.name}".lower()
    (hub.machines / name).mkdir()
    (hub.machines / name / "machine.toml").write_text("colour = 'red'\n")
    alice = await hub.log_in("alice")

    await hub.get_form(alice)
    await hub.get_form(alice)

    assert len([record for record in caplog.records if name in record.getMessage()]) == 1
