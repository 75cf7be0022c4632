"""The page of the machines in a real browser, as administrators use it; nobody else sees it."""

from pathlib import Path

import guests
import hubs
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from PIL import Image
from playwright.async_api import Page, expect

HOSTILE = "<img src=x onerror=document.title='ran'>\"'&"


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The page, seen by an administrator."""
    hub.user("admin", admin=True)
    page = await log_in(hub, "admin")
    await page.get_by_role("link", name="Machines").click()
    await page.get_by_role("article").first.wait_for()
    return page


def write_hostile(hub: hubs.Hub) -> None:
    folder = hub.machines / "hostile"
    folder.mkdir()
    name = HOSTILE.replace("\\", "\\\\").replace('"', '\\"')
    long = f"{name} \U0001f4a5 " * 35
    (folder / "machine.toml").write_text(
        f'name = "{name}"\nversion = "{name}"\ndescription = "{long}"\n'
        f'[image]\nfile = "none"\nformat = "raw"\n[allow]\ngroups = ["{name}"]\n'
    )
    (hub.machines / "broken").mkdir()
    (hub.machines / "broken" / "machine.toml").write_text(f'"{name}" = 1\n')


async def test_hostile_texts_are_text_and_keep_nobody_out(hub: hubs.Hub, page: Page) -> None:
    write_hostile(hub)
    await page.reload()

    hostile = page.locator("[data-machine=hostile]")
    await expect(hostile.get_by_role("heading")).to_contain_text(HOSTILE)
    await expect(hostile).to_contain_text("Cannot start")
    await expect(hostile).to_contain_text(f"For the group {HOSTILE}.")
    broken = page.locator("[data-machine=broken]")
    await expect(broken).to_contain_text("Broken")
    await expect(broken).to_contain_text(f"“{HOSTILE}”: there is no such key")
    await broken.get_by_role("button", name="Edit: broken").click()
    await expect(page.get_by_role("dialog", name="Edit: broken")).to_contain_text("there is no such key")
    await page.get_by_role("button", name="Close").click()
    await hostile.get_by_role("button", name="Remove").wait_for(state="detached")
    assert await page.locator("img[src=x]").count() == 0
    assert await page.title() != "ran"
    assert await find_barriers_in_both_looks(page) == []


async def test_a_machine_is_added_with_its_image_and_offered(
    hub: hubs.Hub, page: Page, tmp_path: Path, state_dir: Path
) -> None:
    source = tmp_path / "disk.img"
    guests.make_disk(source)
    await page.get_by_role("button", name="Add a machine").click()
    dialog = page.get_by_role("dialog", name="Add a machine")
    await dialog.get_by_label("Name").fill("Alma 9")
    await dialog.get_by_label("Id", exact=True).fill("alma")
    await dialog.get_by_label("Format of its image").select_option("raw")
    await dialog.get_by_label("Or upload this file").set_input_files(source)
    assert await find_barriers_in_both_looks(page) == []

    await dialog.get_by_role("button", name="Add", exact=True).click()

    alma = page.locator("[data-machine=alma]")
    await expect(alma).to_contain_text("Image: raw, 1 MiB.", timeout=30_000)
    await expect(alma).to_contain_text("Hidden")
    assert (state_dir / "images" / "alma" / "disk.img").read_bytes() == source.read_bytes()
    await expect(alma.get_by_role("link", name="Try: Alma 9")).to_have_attribute(
        "href", "/@/space%20word/hub/spawn?opt-machine=alma"
    )
    await alma.get_by_role("button", name="Offer: Alma 9").click()
    await expect(alma).to_contain_text("Offered")
    await expect(alma.get_by_role("button", name="Hide: Alma 9")).to_be_focused()


async def test_what_was_changed_is_saved_and_the_rest_is_left(hub: hubs.Hub, page: Page) -> None:
    before = (hub.machines / "mini" / "machine.toml").read_text()
    await page.get_by_role("button", name="Edit: Mini").click()
    dialog = page.get_by_role("dialog", name="Edit: Mini")
    await dialog.get_by_label("Version").fill("2")
    await dialog.get_by_label("CPUs to choose from").fill("1, 4")
    await dialog.get_by_label("For these groups").fill("team, it's")
    await dialog.get_by_role("button", name="Save", exact=True).click()
    await expect(dialog).to_be_hidden()

    mini = page.locator("[data-machine=mini]")
    await expect(mini).to_contain_text("For the group team, the group it's.")
    text = (hub.state_dir / "machines" / "mini" / "machine.toml").read_text()
    expected = before.replace('version = "1"', 'version = "2"').replace(
        "offered = [1, 2]", "offered = [1, 4]"
    )
    assert text.startswith(expected)
    assert text.removeprefix(expected).split() == ["[allow]", "groups", "=", '["team",', '"it\'s"]']


async def test_a_broken_text_is_refused_by_line_and_a_version_brought_back(hub: hubs.Hub, page: Page) -> None:
    await page.get_by_role("button", name="Hide: Mini").click()
    await page.get_by_role("button", name="Offer: Mini").click()
    await page.get_by_role("button", name="Edit: Mini").click()
    dialog = page.get_by_role("dialog", name="Edit: Mini")
    await dialog.get_by_text("Everything, as text").click()
    whole = dialog.get_by_label("machine.toml")
    text = await whole.input_value()

    await whole.fill(f"nane = 1\n{text}")
    await dialog.get_by_role("button", name="Save the text").click()
    await expect(dialog.get_by_role("alert")).to_contain_text(
        "line 1: “nane”: there is no such key; is 'name' meant?"
    )

    await dialog.get_by_text("Who changed it").click()
    await expect(page.locator("#qs-edit-versions li").first).to_contain_text("3: offered by admin")
    await dialog.get_by_role("button", name="Go back to version 2").click()
    await expect(page.locator("[data-machine=mini]")).to_contain_text("Hidden")


async def test_two_administrators_do_not_overwrite_each_other(hub: hubs.Hub, page: Page) -> None:
    await page.get_by_role("button", name="Edit: Mini").click()
    dialog = page.get_by_role("dialog", name="Edit: Mini")
    other = await hub.with_token("boss", admin=True)
    answer = await other.request("GET", hub.url / "api/machines/mini")
    digest = answer.text.partition('"digest": "')[2].partition('"')[0]
    body = {"set": {"version": "9"}, "digest": digest}
    assert (await other.request("PATCH", hub.url / "api/machines/mini", json=body)).status == 200

    await dialog.get_by_label("Version").fill("8")
    await dialog.get_by_role("button", name="Save", exact=True).click()

    await expect(dialog.get_by_role("alert")).to_contain_text(
        "'mini' was changed by boss since you opened it; nothing was saved."
    )


async def test_copied_removed_and_put_back_by_the_keyboard_alone(hub: hubs.Hub, page: Page) -> None:
    await page.get_by_role("button", name="Copy: Mini").focus()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Copy: Mini")
    await dialog.get_by_label("Name of the new machine").focus()
    await page.keyboard.press("Control+a")
    await page.keyboard.type("Second")
    await page.keyboard.press("Tab")
    await page.keyboard.type("second")
    await page.keyboard.press("Enter")
    second = page.locator("[data-machine=second]")
    await expect(second).to_contain_text("Image: raw, 1 MiB.")

    await second.get_by_role("button", name="Remove: Second").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog", name="Remove “Second”?").get_by_role("button", name="Remove").focus()
    await page.keyboard.press("Enter")
    await expect(second).to_have_count(0)
    await page.get_by_role("button", name="Put back: Second").focus()
    assert await find_barriers_in_both_looks(page) == []
    await page.keyboard.press("Enter")

    await expect(second).to_contain_text("Image: raw, 1 MiB.")


async def test_a_fetch_that_fails_says_why_on_the_card(hub: hubs.Hub, page: Page) -> None:
    """Nobody listens at that port."""
    await page.get_by_role("button", name="New image: Mini").click()
    dialog = page.get_by_role("dialog", name="New image: Mini")
    await dialog.get_by_label("Fetch it from this URL").fill("http://127.0.0.1:9/x")
    await dialog.get_by_role("button", name="Take this image").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("give image.digest too, or use https://")

    await dialog.get_by_label("Digest").fill(f"sha256:{'0' * 64}")
    await dialog.get_by_role("button", name="Take this image").click()

    mini = page.locator("[data-machine=mini]")
    await expect(mini).to_contain_text("The new image was not taken.", timeout=30_000)
    await expect(mini).to_contain_text("Cannot connect to host 127.0.0.1:9")


async def test_an_icon_is_uploaded_and_shown(hub: hubs.Hub, page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    Image.new("RGB", (400, 200), (255, 0, 0)).save(picture)
    await page.get_by_role("button", name="Icon: Mini").click()
    dialog = page.get_by_role("dialog", name="Icon: Mini")
    await dialog.get_by_label("Picture").set_input_files(picture)
    assert await find_barriers_in_both_looks(page) == []
    await dialog.get_by_role("button", name="Take this picture").click()

    icon = page.locator("[data-machine=mini] img")
    await expect(icon).to_have_js_property("naturalWidth", 96)
    await expect(icon).to_have_js_property("naturalHeight", 48)
    await expect(dialog).to_be_hidden()


async def test_a_picture_that_is_no_png_is_refused_with_a_sentence(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "script.png"
    picture.write_text("<svg onload='alert(1)'/>")
    await page.get_by_role("button", name="Icon: Mini").click()
    dialog = page.get_by_role("dialog", name="Icon: Mini")
    await dialog.get_by_label("Picture").set_input_files(picture)
    await dialog.get_by_role("button", name="Take this picture").click()

    await expect(dialog.get_by_role("alert")).to_contain_text("The picture is no PNG file.")


async def test_on_a_phone_nothing_is_cut_off(hub: hubs.Hub, page: Page) -> None:
    write_hostile(hub)
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.reload()
    await page.locator("[data-machine=hostile]").wait_for()

    async def too_wide() -> bool:
        return bool(await page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    assert not await too_wide()
    await page.get_by_role("button", name="Edit: Mini").click()
    await page.get_by_role("dialog", name="Edit: Mini").wait_for()
    box = await page.locator("#qs-edit").bounding_box()
    assert box is not None
    assert box["width"] <= 360
    assert not await too_wide()


async def test_nobody_else_is_led_there_or_let_in(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    home = await alice.request("GET", hub.url / "home")
    there = await alice.request("GET", hub.url / "machines")

    assert "/hub/machines" not in home.text
    assert there.status == 403
