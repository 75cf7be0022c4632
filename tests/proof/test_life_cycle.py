"""L1: things are done to desktops in any order, and at once, and a model says what comes of it."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import life_driver
import life_model as model
import live
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from proofs import Proof

SERVERS = ("one", "two")
# For what follows from something by itself: a session answers for 3 s after its end.
_PATIENCE_S = 60

_ACTIONS: list[model.Action] = [
    model.Stop(),
    model.Remove(),
    model.Suspend(),
    model.Extend(),
    model.SwitchOff(),
    model.Share("view"),
    model.Share("control"),
    model.Share(None),
    model.SaveCheckpoint("<b>one</b>"),
    model.GoBack(0),
    model.GoBack(2),
    model.Forget(),
    model.Forget(0),
    model.KillQemu(),
    model.KillSupervisor(),
]
_STARTS: list[model.Action] = [model.Start(how) for how in ("", "", "wake", "boot", "discard", 0, 1)]
servers = st.sampled_from(SERVERS)
# Each of many as often as the others, which hypothesis' own choice is not.
chances = st.integers(0, 2**32 - 1).map(random.Random)


class World:
    """The hub and who asks it, in an event loop of their own."""

    def __init__(self, runner: asyncio.Runner, driver: life_driver.Driver) -> None:
        self.run: Callable[[Awaitable[Any]], Any] = runner.run  # type: ignore[assignment]
        self.driver = driver
        self.steps: Counter[str] = Counter()
        self.sequences = 0
        self.failure: BaseException | None = None


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def open_all() -> life_driver.Driver:
            hub = await stack.enter_async_context(
                live.live_hub(suspend_on=["idle", "lifetime", "stop"], more=life_driver.CONFIG)
            )
            people = [
                await stack.enter_async_context(hub.person(name, token=await hub.new_token(name)))
                for name in (life_driver.OWNER, life_driver.GUEST)
            ]
            return life_driver.Driver(hub, *people)

        try:
            yield World(runner, runner.run(open_all()))
        finally:
            runner.run(stack.aclose())


class FailedBeforeError(Exception):
    """Once is enough."""


class Life(RuleBasedStateMachine):
    """Two desktops of one owner, and a guest of theirs.

    What is drawn never depends on what has happened: hypothesis could not draw the same again.
    """

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.desktops = {server: model.Desktop() for server in SERVERS}
        self.told: list[str] = []

    @initialize()
    def look_before(self) -> None:
        with self.step("at first"):
            self.settle()
            self.rows = self.world.driver.count_rows()
            self.world.sequences += 1

    # What is done

    @rule(server=servers, start=chances)
    def start(self, server: str, start: random.Random) -> None:
        self.do(server, start.choice(_STARTS))

    @rule(server=servers, chance=chances)
    def act(self, server: str, chance: random.Random) -> None:
        self.do(server, chance.choice(_ACTIONS))

    @rule(server=servers, chance=chances)
    def act_where_one_runs(self, server: str, chance: random.Random) -> None:
        self.do(self.running(server), chance.choice(_ACTIONS))

    @rule(server=servers, chance=chances)
    def act_twice_at_once(self, server: str, chance: random.Random) -> None:
        self.do_at_once(self.running(server), *chance.sample(_ACTIONS, 2))

    @rule(server=servers, chance=chances)
    def travel(self, server: str, chance: random.Random) -> None:
        """Checkpoints are many steps deep."""
        server = self.running(server)
        self.do(server, model.SaveCheckpoint("<b>here</b>"))
        self.do(server, model.PressKey())
        self.do(server, model.GoBack(chance.randrange(3)))

    @rule(server=servers)
    def press_key(self, server: str) -> None:
        self.do(self.running(server), model.PressKey())

    @rule(server=servers)
    def reset(self, server: str) -> None:
        server = self.running(server)
        # A screen that is green already would not show when the guest reads keys again.
        if self.desktops[server].screen == "green":
            self.do(server, model.PressKey())
        self.do(server, model.Reset())

    @rule()
    def restart_hub(self) -> None:
        with self.step("restart of the hub"):
            self.world.driver.hub.kill()
            self.world.run(self.world.driver.hub.start())
            self.world.steps["RestartHub"] += 1
            self.settle()

    def teardown(self) -> None:
        if self.world.failure is not None:
            return
        for server, desktop in self.desktops.items():
            if desktop.is_known:
                self.do(server, model.Remove())
            elif desktop.kept or desktop.points:
                self.do(server, model.Forget())
        with self.step("at last"):
            self.world.run(self.world.driver.sweep())
            self.desktops = dict.fromkeys(SERVERS, model.Desktop())
            self.settle()
            assert self.world.driver.count_rows() == self.rows

    # How

    def running(self, server: str) -> str:
        """This one if it runs; else another one that does, or this one started."""
        found = [one for one in (server, *SERVERS) if self.desktops[one].is_running]
        if not found:
            self.do(server, model.Start())
        return found[0] if found else server

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """The first failure ends it all: hypothesis tries it again, and processes never do the same twice."""
        if self.world.failure is not None:
            raise FailedBeforeError
        self.told.append(what)
        try:
            yield
        except BaseException as exc:
            exc.add_note("\n".join(self.told))
            self.world.failure = exc
            raise

    def do(self, server: str, action: model.Action) -> None:
        with self.step(f"{server}: {action}"):
            expected = action.result(self.desktops[server])
            answer = self.world.run(self.world.driver.do(server, action))
            self.world.steps[type(action).__name__] += 1
            known = expected.answers
            assert answer in known, f"{action} was answered by {answer}, not one of {sorted(known)}"
            self.desktops[server] = expected.desktop
            self.settle()

    def do_at_once(self, server: str, first: model.Action, second: model.Action) -> None:
        with self.step(f"{server}: {first} and {second} at once"):
            asked = self.world.run(self.ask_both(server, first, second))
            answers = dict(zip((first, second), asked, strict=True))
            self.world.steps["TwoAtOnce"] += 1
            told = [
                story.desktop
                for story in model.stories(self.desktops[server], first, second)
                if all(answers[action] in known for action, known in story.answers.items())
            ]
            assert told, f"no story has these answers: {answers}"
            self.desktops[server] = self.settle_as({server: told})[server]

    async def ask_both(self, server: str, *actions: model.Action) -> list[int]:
        return await asyncio.gather(*(self.world.driver.do(server, action) for action in actions))

    def settle(self) -> None:
        self.settle_as({})

    def settle_as(self, other: Mapping[str, Sequence[model.Desktop]]) -> dict[str, model.Desktop]:
        """Wait until all desktops are seen to be as the model has them, or as one of `other`."""
        wanted = {server: [desktop] for server, desktop in self.desktops.items()} | dict(other)
        end = time.monotonic() + _PATIENCE_S
        while True:
            seen = self.world.run(self.world.driver.see(SERVERS))
            found = {
                server: desktop
                for server, desktops in wanted.items()
                for desktop in desktops
                if model.is_as(seen[server], desktop)
            }
            if len(found) == len(wanted):
                break
            if time.monotonic() > end:
                odd = next(server for server in SERVERS if server not in found)
                known = [str(model.look_at(desktop)) for desktop in wanted[odd]]
                raise AssertionError("\n".join([f"'{odd}' is neither of these:", str(seen[odd]), *known]))
            time.sleep(0.1)
        promised = self.world.run(self.world.driver.promised_cpus())
        assert promised == sum(desktop.is_running for desktop in found.values())
        return found


@pytest.mark.goal("L1")
@pytest.mark.timeout(3600)
def test_a_desktop_is_only_ever_in_a_state_that_its_history_allows(world: World, proof: Proof) -> None:
    class InWorld(Life):
        pass

    InWorld.world = world
    how = settings(
        max_examples=proof.rounds(short=3, full=40),
        stateful_step_count=proof.rounds(short=10, full=25),
        derandomize=True,
        database=None,
        deadline=None,
        # What fails is written out as steps; making it shorter would take hours.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(InWorld, settings=how)
    except Exception:
        raise world.failure or AssertionError from None
    finally:
        proof.note(
            done=f"{world.steps.total()} steps in {world.sequences} sequences: "
            + ", ".join(f"{count} {what}" for what, count in world.steps.most_common()),
            found=str(world.failure or "every answer and state as the model says, and nothing left behind"),
            limit="no answer or state that the model does not know",
        )
