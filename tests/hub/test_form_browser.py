"""The options form as people use it, in a real browser: two clicks, the keyboard alone, hostile texts."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Page, ViewportSize, expect
from recipes import recipe

from qemuspawner.hub.form.settings import save_setting
from qemuspawner.hub.records import Records
from qemuspawner.machines.software import Program, write_software
from qemuspawner.paths import StatePaths

# For people to look at; not compared.
SCREENSHOTS = Path(__file__).parent.parent.parent / "screenshots"
SIZE: ViewportSize = {"width": 1280, "height": 900}
HOSTILE = "<img src=x onerror=document.title='ran'>\"'& \U0001f9ea"
PARAVIEW = """
[[presets]]
name = "Small"
description = "To look at results."
cpus = 1
memory = "128 MiB"

[[presets]]
name = "Large"
description = "For rendering."
cpus = 2
memory = "256 MiB"
lifetime = "2 h"
"""
# Of a guest that would carry out what is chosen; these tests start a stand-in.
CAPABLE = 'agent = true\nhome = "/home/user"\ndisplay = "virtio"\n'
TERMS = "Be kind.\n\n" + "No mining of anything. " * 60

Start = Callable[..., Awaitable[hubs.Hub]]


def as_toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def add_machine(
    hub: hubs.Hub, name: str, *, title: str = "", about: str = "", keys: str = "", tables: str = ""
) -> None:
    hubs.add_machine(hub.machines, hub.state_dir, name, title=title, description=about, more=tables)
    path = hub.machines / name / "machine.toml"
    path.write_text(keys + path.read_text())


@pytest.fixture
async def hub(standin: Start) -> hubs.Hub:
    """A hub with five machines, one of them with presets."""
    hub = await standin(scripts=True)
    software = 'software = ["Fiji 2.14", { name = "ParaView 5.11", gpu = true }, "Python 3.11", "Tomviz"]\n'
    about = "Reconstruction and three-dimensional views of tomography data."
    add_machine(hub, "tomo", title="Tomography", about=about, keys=software + CAPABLE, tables=PARAVIEW)
    add_machine(
        hub, "debian", title="Debian 12 desktop", about="A light desktop with an editor.", keys=CAPABLE
    )
    add_machine(
        hub, "matlab", title="Spectra", about="Fits and peaks.", keys='software = ["PyMca", "Larch"]\n'
    )
    add_machine(hub, "bare", title="Windows 11", about="For what only runs there.")
    (hub.state_dir / "images/bare/disk.raw").unlink()
    return hub


Open = Callable[..., Awaitable[Page]]


@pytest.fixture
async def open_form(hub: hubs.Hub, log_in: LogIn) -> Open:
    """Log in as alice and open the form."""

    async def open_form(query: str = "", **options: object) -> Page:
        page = await log_in(hub, "alice", **{"viewport": SIZE, **options})
        await page.goto(f"{hub.url}spawn{query}")
        return page

    return open_form


async def shoot(page: Page, name: str) -> None:
    """Pictures for people to look at, wide, on a phone, and in the dark; and nothing keeps anybody out."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for size, width in (("", 1280), ("-phone", 390)):
        await page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            await page.evaluate("theme => document.documentElement.dataset.bsTheme = theme", theme)
            suffix = "-dark" if theme == "dark" else ""
            # As tall as the page: what sticks to the window's end would lie in the middle of the picture.
            height = await page.evaluate("document.documentElement.scrollHeight")
            await page.set_viewport_size({"width": width, "height": height})
            await page.screenshot(path=SCREENSHOTS / f"{name}{size}{suffix}.png")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.set_viewport_size({"width": 1280, "height": 900})
    await page.evaluate("document.documentElement.dataset.bsTheme = 'light'")
    assert await find_barriers_in_both_looks(page) == []


async def started_with(hub: hubs.Hub, page: Page) -> dict[str, object]:
    await page.wait_for_url(re.compile("spawn-pending|/user/"))
    await hub.wait_until_ready("alice")
    return dict(hub.spawner("alice").user_options)


async def test_two_clicks_start_a_desktop(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form()
    await shoot(page, "form")

    await page.get_by_role("radio", name="Tomography: Large").click()
    await page.get_by_role("button", name="Start", exact=True).click()

    options = await started_with(hub, page)
    assert {name: options[name] for name in ("machine", "cpus", "memory", "lifetime")} == {
        "machine": "tomo",
        "cpus": 2,
        "memory": 256,
        "lifetime": 7200,
    }


async def test_the_keyboard_alone_is_enough(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form()
    await page.get_by_label("Search machines").focus()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("radio", name="Debian 12 desktop")).to_be_focused()
    for _ in range(3):
        await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("radio", name="Tomography: Small")).to_be_checked()

    await page.keyboard.press("Enter")

    assert (await started_with(hub, page))["machine"] == "tomo"


async def test_it_works_without_javascript(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form(java_script_enabled=False)

    await page.get_by_role("radio", name="Tomography: Large").click()
    await page.locator("summary").click()
    await page.get_by_label("Name").fill("Night run")
    await page.get_by_role("button", name="Start", exact=True).click()

    options = await started_with(hub, page)
    assert (options["machine"], options["cpus"], options["name"]) == ("tomo", 2, "Night run")


async def test_machines_are_found_by_their_software(open_form: Open) -> None:
    page = await open_form()
    search = page.get_by_label("Search machines")

    await search.fill("paraview 5")
    await expect(page.get_by_role("status").filter(has_text="found")).to_have_text("1 machine found")
    await expect(page.locator(".qs-machine:visible .qs-name")).to_have_text(["Tomography"])
    await search.fill("e")
    await expect(page.get_by_role("status").filter(has_text="found")).to_have_text(
        re.compile("^[2-5] machines found")
    )
    await search.fill("nothing of this kind")
    await expect(page.get_by_text("No machine has this")).to_be_visible()
    await page.keyboard.press("Enter")

    await expect(page).to_have_url(re.compile("/spawn$"))


BUILT = recipe("Beamline", packages='"silx"')


async def test_a_built_machine_is_found_by_what_its_packages_say(hub: hubs.Hub, open_form: Open) -> None:
    """Its machine.toml names no software; beside its image lies what the build has found."""
    folder, images = hub.machines / "beamline", hub.state_dir / "images/beamline"
    for path in (folder, images):
        path.mkdir()
    (folder / "machine.toml").write_text(BUILT)
    for name in ("disk.qcow2", "vmlinuz"):
        (images / name).touch()
    about = f"Toolbox for X-Ray data {HOSTILE}"
    silx = Program(name="silx view", version="1.1.0+dfsg-5", summary=about, package="silx")
    write_software(images, [silx])
    page = await open_form()
    search, names = page.get_by_label("Search machines"), page.locator(".qs-machine:visible .qs-name")

    for words in ("x-ray data", "SILX VIEW", "1.1.0"):
        await search.fill(words)
        await expect(names).to_have_text(["Beamline"])

    shown = page.locator(".qs-machine:visible").get_by_text("silx view", exact=True)
    await expect(shown).to_have_attribute("title", f"1.1.0+dfsg-5: {about}")


async def test_favourites_are_shown_first(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form()
    names = page.locator(".qs-name")
    await expect(names.first).to_have_text("Debian 12 desktop")

    star = page.get_by_role("button", name="Favourite: Spectra")
    await star.click()
    await expect(star).to_have_attribute("aria-pressed", "true")
    await page.reload()

    await expect(names.first).to_have_text("Spectra")
    await expect(page.get_by_role("radio", name="Spectra")).to_be_checked()


async def test_what_was_typed_stays_next_to_what_is_wrong(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form()
    await page.get_by_role("radio", name="Tomography: Small").click()
    await page.locator("summary").click()
    await page.get_by_label("Name").fill(HOSTILE)
    await page.get_by_label("Notes").fill(f"{HOSTILE}\n\n  second line")
    await page.get_by_label("Start script").fill("echo no interpreter\n")
    await page.get_by_label("Keyboard").select_option("German (Switzerland)")
    await page.get_by_role("button", name="Start", exact=True).click()

    await expect(page.locator("#qs-script-problem")).to_contain_text("a script begins with #!")
    await expect(page.get_by_label("Start script")).to_be_visible()
    await expect(page.get_by_label("Start script")).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_label("Start script")).to_have_value("echo no interpreter\n")
    await expect(page.get_by_label("Notes")).to_have_value(f"{HOSTILE}\n\n  second line")
    await expect(page.get_by_label("Name")).to_have_value(HOSTILE)
    await expect(page.get_by_label("Keyboard")).to_have_value("ch")
    await expect(page.get_by_role("radio", name="Tomography: Small")).to_be_checked()
    assert await page.title() != "ran"
    await shoot(page, "form-advanced")
    await page.get_by_label("Start script").fill("#!/bin/sh\necho fine\n")
    await page.get_by_role("button", name="Start", exact=True).click()

    options = await started_with(hub, page)
    assert (options["name"], options["notes"]) == (HOSTILE, f"{HOSTILE}\n\n  second line")
    assert options["script"] == "#!/bin/sh\necho fine\n"


async def test_what_is_too_long_is_counted_and_not_sent(open_form: Open) -> None:
    page = await open_form()
    await page.locator("summary").click()
    notes = page.get_by_label("Notes")

    await notes.fill("x" * 2001)

    await expect(page.locator("[data-counter=notes]")).to_have_text("2,001 of 2,000")
    assert await notes.evaluate("notes => notes.validationMessage") == "This is too long."


async def test_advanced_stays_as_it_was_left(open_form: Open) -> None:
    page = await open_form()
    cpus = page.get_by_label("CPUs", exact=True)
    await expect(cpus).to_be_hidden()
    await page.locator("summary").click()
    await expect(cpus).to_be_visible()

    await page.reload()

    await expect(cpus).to_be_visible()


async def test_a_size_of_ones_own_leaves_the_preset(open_form: Open) -> None:
    page = await open_form()
    await page.get_by_role("radio", name="Tomography: Large").click()
    await page.locator("summary").click()
    await expect(page.get_by_label("CPUs", exact=True)).to_have_value("2")
    await expect(page.get_by_label("Lifetime")).to_have_value("7200")

    await page.get_by_label("CPUs", exact=True).select_option("1")

    await expect(page.get_by_role("radio", name="Tomography: Other size")).to_be_checked()
    await expect(page.get_by_label("Memory")).to_have_value("256")
    await expect(page.locator("#qs-summary")).to_have_text("1 CPU · 256 MiB · 2 h")


async def test_what_a_machine_cannot_do_is_not_offered(open_form: Open) -> None:
    page = await open_form()
    await page.locator("summary").click()
    await expect(page.get_by_label("Keyboard")).to_be_visible()

    await page.get_by_role("radio", name="Spectra").click()

    for name in ("Keyboard", "Resolution", "Start script"):
        await expect(page.get_by_label(name)).to_be_hidden()
        await expect(page.get_by_label(name)).to_be_disabled()


async def test_settings_are_saved_filled_in_and_deleted(hub: hubs.Hub, open_form: Open) -> None:
    page = await open_form()
    await page.get_by_role("radio", name="Tomography: Large").click()
    await page.locator("summary").click()
    await page.get_by_label("Notes").fill("two\nlines")
    await page.get_by_label("Save these settings as").fill("Weekly run")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_text("Saved as “Weekly run”")).to_be_visible()
    await page.reload()
    assert await find_barriers_in_both_looks(page) == []

    await page.get_by_role("link", name="Weekly run").click()
    await expect(page.get_by_role("radio", name="Tomography: Large")).to_be_checked()
    await expect(page.get_by_label("Notes")).to_have_value("two\nlines")
    assert not hub.spawner("alice").active
    await page.get_by_role("button", name="Delete the saved settings “Weekly run”").click()

    await expect(page.get_by_role("link", name="Weekly run")).to_have_count(0)
    await page.reload()
    await expect(page.get_by_role("link", name="Weekly run")).to_have_count(0)


async def test_saved_settings_that_no_longer_fit_say_so_at_their_field(
    hub: hubs.Hub, open_form: Open
) -> None:
    records = Records(StatePaths(root=hub.state_dir))
    old = {"machine": "tomo", "cpus": 64, "memory": 256, "notes": "kept"}
    save_setting(records, user="alice", name=HOSTILE, options=old)
    page = await open_form()

    await page.get_by_role("link", name=HOSTILE).click()

    await expect(page.locator("#qs-cpus-problem")).to_have_text(
        "The option 'cpus' is '64'; 'Tomography' offers 1 or 2."
    )
    await expect(page.get_by_label("Memory")).to_have_value("256")
    await expect(page.get_by_label("Notes")).to_have_value("kept")
    assert await page.title() != "ran"


async def test_terms_are_accepted_with_a_start_and_once(standin: Start, log_in: LogIn) -> None:
    hub = await standin(terms=TERMS, terms_version="2026-11")
    page = await log_in(hub, "alice", to="spawn", viewport=SIZE)
    accept = page.get_by_label("I accept the terms of use, version 2026-11")
    await shoot(page, "form-terms")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(accept).to_be_visible()
    assert not hub.spawner("alice").active

    await accept.check()
    await page.get_by_role("button", name="Start", exact=True).click()
    await started_with(hub, page)
    await hub.stop(await hub.log_in("alice"))
    await page.goto(f"{hub.url}spawn")

    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
    await expect(accept).to_have_count(0)


async def test_hostile_machines_are_text_and_long_ones_fit(hub: hubs.Hub, open_form: Open) -> None:
    software = as_toml([HOSTILE, "x" * 60, *(f"Program {number}" for number in range(90))])
    title, about = as_toml(HOSTILE)[1:-1], as_toml(HOSTILE + "y" * 1900)[1:-1]
    presets = f'[[presets]]\nname = {as_toml(HOSTILE)}\ndescription = "{"z" * 200}"\n'
    add_machine(hub, "nasty", title=title, about=about, keys=f"software = {software}\n", tables=presets)

    page = await open_form()

    await page.get_by_role("radio", name=f"{HOSTILE}: {HOSTILE}").click()
    await shoot(page, "form-hostile")
    await page.get_by_role("button", name="Start", exact=True).click()
    assert (await started_with(hub, page))["machine"] == "nasty"
    assert await page.title() != "ran"


async def test_what_cannot_start_now_is_disabled_with_the_reason_and_comes_back(
    standin: Start, log_in: LogIn
) -> None:
    hub = await standin(quotas={"user": {"cpus": 2}})
    add_machine(hub, "tomo", title="Tomography", tables=PARAVIEW)
    page = await log_in(hub, "alice", viewport=SIZE, has_clock=True)
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"}, server_name="other")
    await hub.wait_until_ready("alice", server_name="other")

    await page.goto(f"{hub.url}spawn")
    large = page.get_by_role("radio", name="Tomography: Large")
    await expect(large).to_be_disabled()
    await expect(page.locator("label").filter(has=large)).to_contain_text("Quota 'CPUs'")
    await shoot(page, "form-full")
    await hub.stop(alice, server_name="other")
    await hub.wait_until_stopped("alice", server_name="other")
    await page.clock.run_for(11_000)

    await expect(large).to_be_enabled()
    await expect(page.locator("#qs-changed")).to_contain_text(
        "Tomography: Large, 2 CPUs · 256 MiB · 2 h can start again."
    )
