"""A start that is refused is answered with the reason, however long JupyterHub takes over starts."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import hubs
import pytest
from jupyterhub.tests.mocking import MockPAMAuthenticator

Start = Callable[..., Awaitable[hubs.Hub]]
SENTENCE = "Quota 'CPUs' of 'alice': 0 of 1 are used; 2 more were asked for."


class SlowAuthenticator(MockPAMAuthenticator):
    """JupyterHub waits for it before it asks the spawner."""

    may_go_on: asyncio.Event

    async def pre_spawn_start(self, user: Any, spawner: Any) -> None:
        await self.may_go_on.wait()


@pytest.fixture
async def slow_hub(quick_hub: Start) -> AsyncIterator[hubs.Hub]:
    """A hub whose starts get stuck until the test is over, with a quota of one CPU."""
    SlowAuthenticator.may_go_on = asyncio.Event()
    yield await quick_hub(
        jupyterhub={"authenticator_class": SlowAuthenticator, "tornado_settings": {"slow_spawn_timeout": 0}},
        quotas={"user": {"cpus": 1}},
    )
    SlowAuthenticator.may_go_on.set()


async def test_the_form_is_shown_again_with_the_reason(slow_hub: hubs.Hub) -> None:
    alice = await slow_hub.log_in("alice")

    answer = await slow_hub.submit_form(alice, machine="mini", cpus="2", name="kept")

    assert answer.status == 409
    assert SENTENCE.replace("'", "&#39;") in answer.text
    # What was typed is still there.
    assert 'value="kept"' in answer.text


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ({"machine": "mini", "cpus": 2}, 409, SENTENCE),
        ({"machine": "nothing"}, 400, "The option 'machine'"),
        ({"machine": "mini", "speed": 3}, 400, "There is no option 'speed'"),
    ],
)
async def test_a_program_is_told_the_reason(
    options: dict[str, object], status: int, sentence: str, slow_hub: hubs.Hub
) -> None:
    alice = await slow_hub.with_token("alice")

    answer = await slow_hub.start(alice, options)

    assert answer.status == status
    assert json.loads(answer.text)["message"].startswith(sentence)


async def test_a_refused_start_leaves_no_token_behind(slow_hub: hubs.Hub) -> None:
    alice = await slow_hub.log_in("alice")
    before = len(slow_hub.user("alice").orm_user.api_tokens)

    await slow_hub.start(alice, {"machine": "mini", "cpus": 2})

    assert len(slow_hub.user("alice").orm_user.api_tokens) == before


@pytest.mark.parametrize("options", [{"machine": "mini", "cpus": 2}, {"machine": "nothing"}])
async def test_a_refused_start_leaves_the_options_of_the_last_one(
    options: dict[str, object], quick_hub: Start
) -> None:
    """Whoever starts it again without any gets what ran, not what never did."""
    hub = await quick_hub(quotas={"user": {"cpus": 1}})
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini", "cpus": 1, "name": "ran"})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    refused = await hub.start(alice, options)
    again = await hub.start(alice)

    assert refused.status in (400, 409)
    assert again.status in (201, 202)
    assert hub.spawner("alice").user_options["name"] == "ran"


async def test_what_a_start_needs_is_promised_while_jupyterhub_is_at_it(slow_hub: hubs.Hub) -> None:
    """The spawner has not been asked yet when the second one comes."""
    alice = await slow_hub.log_in("alice")
    await slow_hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="first")

    answer = await slow_hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="second")

    assert answer.status == 409
    assert "1 of 1 are used" in answer.text


async def test_a_start_that_jupyterhub_gives_up_gives_back_what_it_was_promised(
    quick_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await quick_hub(quotas={"user": {"cpus": 1}})
    alice = await hub.log_in("alice")
    with monkeypatch.context() as patch:
        patch.setitem(hub.app.tornado_settings, "active_server_limit", -1)
        refused = await hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="first")

    answer = await hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="second")

    assert (refused.status, answer.status) == (429, 201)


async def test_a_start_that_fails_before_the_spawner_gives_back_what_it_was_promised(
    quick_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await quick_hub(quotas={"user": {"cpus": 1}})
    alice = await hub.log_in("alice")

    async def fail(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(hub.app.authenticator, "pre_spawn_start", fail)
        failed = await hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="first")

    answer = await hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="second")

    assert (failed.status, answer.status) == (500, 201)


async def test_two_starts_of_one_server_at_once_are_one(quick_hub: Start) -> None:
    """Two presses of a button: the second is no further desktop, and does not undo the first."""
    hub = await quick_hub(quotas={"user": {"sessions": 1}})
    alice = await hub.log_in("alice")

    answers = await asyncio.gather(*(hub.submit_form(alice, machine="mini") for _ in range(2)))

    assert 302 in [answer.status for answer in answers]
    assert all(answer.status != 409 for answer in answers)
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    assert spawner.promise is not None


async def test_a_setting_by_group_counts(quick_hub: Start) -> None:
    """JupyterHub's group_overrides come before the check, and once."""
    calls = []

    def more(spawner: Any) -> dict[str, Any]:
        calls.append(spawner.name)
        return {"user": {"cpus": 2}}

    hub = await quick_hub(
        quotas={"user": {"cpus": 1}},
        group_overrides={"lab": {"groups": ["lab"], "spawner_override": {"quotas": more}}},
    )
    alice = await hub.log_in("alice")
    hub.user("alice", groups=("lab",))

    answer = await hub.start(alice, {"machine": "mini", "cpus": 2})

    assert answer.status == 201
    assert len(calls) == 1
