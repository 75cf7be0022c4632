"""What a guest is told of its clocks, each thing once."""

from moved_clock import Clock, make_spec

from qemuspawner.languages import find_language
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.life.notices import Notice, Notices


def make(clock: Clock, **keys: object) -> tuple[Clocks, Notices]:
    spec = make_spec(**keys)
    clocks = Clocks(spec, now=clock)
    return clocks, Notices(clocks, spec)


def test_the_end_is_said_ten_and_two_minutes_before() -> None:
    clock = Clock()
    _, notices = make(clock, lifetime_s=3600, max_lifetime_s=3600)

    clock.seconds += 2999
    assert notices.due() is None
    clock.seconds += 1
    assert notices.due() == Notice(title="The time is nearly over", text="This desktop ends in 10 min.")
    clock.seconds += 400
    assert notices.due() is None
    clock.seconds += 110
    assert notices.due() == Notice(title="The time is nearly over", text="This desktop ends in 1 min 30 s.")
    assert notices.due() is None


def test_an_end_that_was_put_off_is_said_again() -> None:
    clock = Clock()
    clocks, notices = make(clock, lifetime_s=600, max_lifetime_s=7200, suspend_on=("lifetime",))

    first = notices.due()
    assert first is not None
    assert first.text == "This desktop falls asleep in 10 min. Its page can extend that."
    clocks.extend(3600)
    assert notices.due() is None
    clock.seconds += 3600
    assert notices.due() is not None


def test_a_desktop_that_nobody_uses_is_told_once_until_it_is_used() -> None:
    clock = Clock()
    clocks, notices = make(clock, lifetime_s=86400, max_lifetime_s=86400, idle_s=3600)
    clocks.note_input()

    clock.seconds += 3299
    assert notices.due() is None
    clock.seconds += 1
    assert notices.due() == Notice(
        title="Is anybody there?", text="This desktop ends in 5 min. Any key keeps it awake."
    )
    assert notices.due() is None
    clocks.note_input()
    clock.seconds += 3300
    assert notices.due() is not None


def test_what_the_staff_say_is_shown_once_and_comes_first() -> None:
    clock = Clock()
    _, notices = make(clock, lifetime_s=600, max_lifetime_s=600)
    assert notices.told is None

    notices.tell("The host is serviced at noon.", by="root")

    first = notices.due()
    assert first == Notice(title="From the administrators (root)", text="The host is serviced at noon.")
    second = notices.due()
    assert second is not None
    assert second.title == "The time is nearly over"
    assert notices.told is not None
    assert notices.told.text == "The host is serviced at noon."


def test_a_guest_is_told_in_its_users_language() -> None:
    """Also for how long; what staff have typed stays as it is."""
    clock = Clock()
    _, notices = make(clock, lifetime_s=600, max_lifetime_s=7200, suspend_on=("lifetime",))
    notices.tell("Lunch.", by="root")
    french, german = find_language("fr_FR"), find_language("de")

    assert german.say(notices.due()) == Notice(title="Von den Administratoren (root)", text="Lunch.")
    assert french.say(notices.due()) == Notice(
        title="Le temps est presque écoulé",
        text="Ce bureau se met en veille dans 10 min. Sa page permet de le prolonger.",
    )
