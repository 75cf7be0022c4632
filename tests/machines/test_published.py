"""Images told from others by what distributions publish beside them: lists of digests, and signatures."""

import functools
import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import guests
import pytest
from msgspec import structs

from qemuspawner.errors import ImageError, MachineError, QemuSpawnerError
from qemuspawner.machine import Machine
from qemuspawner.machines import download
from qemuspawner.machines.catalogue import load_catalogue, load_machine
from qemuspawner.machines.checksums import find_digest
from qemuspawner.machines.fetch import fetch_image
from qemuspawner.machines.image_files import Step
from qemuspawner.paths import EXAMPLE_MACHINES, StatePaths

CONTENT = guests.BOOT_SECTOR + bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHA512 = hashlib.sha512(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder that is served; `url` says where, without its scheme's security."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    (tmp_path / "url").write_text(f"http://127.0.0.1:{server.server_port}")
    (folder / "alma.img").write_bytes(CONTENT)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


class Signer:
    """Somebody with a key."""

    def __init__(self, home: Path) -> None:
        self._gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes", "--passphrase", ""]
        self.run("--quick-generate-key", "signer", "ed25519", "sign", "never")

    def run(self, *arguments: str, content: bytes = b"") -> bytes:
        done = subprocess.run([*self._gpg, *arguments], input=content, capture_output=True, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    yield Signer(home)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    return StatePaths(root=tmp_path)


@pytest.fixture
def make(site: Path, state: StatePaths, write_machine: Callable[..., Path]) -> Callable[..., Machine]:
    """A machine whose image is at the site, with further keys; `keyring` is the content of keys.gpg."""

    def run(keyring: bytes = b"", **keys: str) -> Machine:
        url = (state.root / "url").read_text()
        lines = [f'{key} = "{value.replace("SITE", url)}"' for key, value in keys.items()]
        text = '\nname = "Alma"\n[image]\nfile = "disk.img"\nformat = "raw"\n'
        folder = write_machine(text, name="alma")
        if keyring:
            (folder / "keys.gpg").write_bytes(keyring)
            lines.append('keyring = "keys.gpg"')
        (folder / "machine.toml").write_text(f'{text}url = "{url}/alma.img"\n' + "\n".join(lines))
        return load_machine(folder, state.images)

    return run


@pytest.fixture
def fetch(state: StatePaths) -> Callable[[Machine], list[Step]]:
    def run(machine: Machine) -> list[Step]:
        steps: list[Step] = []
        fetch_image(machine, state=state, progress=steps.append, between_tries_s=0)
        return steps

    return run


def image_of(machine: Machine) -> bytes | None:
    path = Path(machine.image.file)
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (f"{'0' * 64}  other.img\n{SHA256}  alma.img\n", f"sha256:{SHA256}"),
        (f"{SHA256.upper()} *alma.img\n", f"sha256:{SHA256}"),
        (f"{SHA256}  ./alma.img\n", f"sha256:{SHA256}"),
        (f"# alma.img: 9 bytes\nSHA256 (alma.img) = {SHA256}\n", f"sha256:{SHA256}"),
        (f"{SHA512}\n", f"sha512:{SHA512}"),
        (f"{SHA256}  alma.img\n{SHA512}  alma.img\n", f"sha512:{SHA512}"),
    ],
)
def test_lists_in_the_usual_forms_are_read(text: str, digest: str) -> None:
    assert find_digest(text, "alma.img") == digest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not name 'alma.img'"),
        ("<html>not found</html>", "does not name"),
        (f"{SHA256}  alma.img.zst\n{SHA256}  old/alma.img\n", "does not name"),
        (f"{'d' * 32}  alma.img", "does not name"),
        (f"{SHA256}  alma.img\n{'0' * 64}  alma.img\n", "says two things of 'alma.img'"),
    ],
)
def test_lists_that_say_nothing_of_the_image_are_refused(text: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        find_digest(text, "alma.img")


def test_an_image_is_what_the_signed_list_says(
    site: Path, signer: Signer, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    """As Debian and Ubuntu publish it, and even by http."""
    sums = f"{SHA512}  alma.img\n".encode()
    (site / "SHA512SUMS").write_bytes(sums)
    (site / "SHA512SUMS.sign").write_bytes(signer.run("--detach-sign", content=sums))
    machine = make(
        keyring=signer.run("--export"), checksums="SITE/SHA512SUMS", signature="SITE/SHA512SUMS.sign"
    )

    fetch(machine)

    assert image_of(machine) == CONTENT


def test_of_a_clear_signed_list_only_the_signed_part_counts(
    site: Path, signer: Signer, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    """As Fedora publishes it; with keys in text form."""
    signed = signer.run("--clearsign", content=f"SHA256 (alma.img) = {SHA256}\n".encode())
    (site / "CHECKSUM").write_bytes(f"SHA256 (alma.img) = {'0' * 64}\n\n".encode() + signed)
    machine = make(keyring=signer.run("--armor", "--export"), checksums="SITE/CHECKSUM")

    fetch(machine)

    assert image_of(machine) == CONTENT


def test_an_image_may_be_signed_itself(
    site: Path, signer: Signer, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    (site / "alma.img.asc").write_bytes(signer.run("--armor", "--detach-sign", content=CONTENT))
    machine = make(keyring=signer.run("--export"), signature="SITE/alma.img.asc")

    fetch(machine)

    assert image_of(machine) == CONTENT


@pytest.mark.parametrize("what", ["list", "signature of the list", "clear text", "image", "no signature"])
def test_what_was_changed_on_its_way_is_refused_and_the_old_image_stays(
    what: str, site: Path, signer: Signer, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    sums, keyring = f"{SHA256}  alma.img\n".encode(), signer.run("--export")
    signature = signer.run("--detach-sign", content=sums)
    keys = {"checksums": "SITE/SUMS", "signature": "SITE/sign"}
    match what:
        case "list":
            sums = sums.replace(SHA256.encode(), b"0" * 64)
        case "signature of the list":
            signature = signer.run("--detach-sign", content=b"something else")
        case "clear text":
            sums = signer.run("--clearsign", content=sums).replace(SHA256.encode(), b"0" * 64)
            del keys["signature"]
        case "image":
            (site / "alma.img").write_bytes(CONTENT[::-1])
        case "no signature":
            sums = b"no list"
            del keys["signature"]
    (site / "SUMS").write_bytes(sums)
    (site / "sign").write_bytes(signature)
    machine = make(keyring=keyring, **keys)
    Path(machine.image.file).parent.mkdir(parents=True)
    Path(machine.image.file).write_text("old")

    with pytest.raises(ImageError, match=r"No key of .*keys.gpg has signed it|has the digest"):
        fetch(machine)

    assert image_of(machine) == b"old"


def test_a_key_that_is_not_in_the_keyring_signs_nothing(
    site: Path, signer: Signer, make: Callable[..., Machine], fetch: Callable[..., list[Step]], tmp_path: Path
) -> None:
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    other = Signer(home)
    (site / "alma.img.sig").write_bytes(other.run("--detach-sign", content=CONTENT))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    machine = make(keyring=signer.run("--export"), signature="SITE/alma.img.sig")

    with pytest.raises(ImageError, match="No key of"):
        fetch(machine)

    assert image_of(machine) is None


def test_mirrors_are_asked_where_the_first_address_has_it_not_or_another_one(
    site: Path, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    (site / "other.img").write_bytes(CONTENT[::-1])
    machine = make(digest=f"sha256:{SHA256}")
    mirrors = tuple(machine.image.url.replace("alma", name) for name in ("none", "other", "alma"))
    image = structs.replace(machine.image, url=mirrors[0], mirrors=mirrors[1:])

    fetch(structs.replace(machine, image=image))

    assert image_of(machine) == CONTENT


def test_where_no_address_has_it_the_last_reason_is_told(
    make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    machine = make(digest=f"sha256:{'0' * 64}")
    image = structs.replace(machine.image, mirrors=(machine.image.url.replace("alma", "none"),))

    with pytest.raises(MachineError, match=r"any of its 2 addresses; the last one: .* answers 404"):
        fetch(structs.replace(machine, image=image))


def test_an_image_that_is_there_already_is_not_fetched_again(
    site: Path, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    machine = make(digest=f"sha512:{SHA512}")
    fetch(machine)
    (site / "alma.img").unlink()

    steps = fetch(machine)

    assert {step.step for step in steps} == {"checking", "done"}


def test_a_list_by_http_without_keys_is_refused_as_is_one_too_many(make: Callable[..., Machine]) -> None:
    with pytest.raises(QemuSpawnerError) as caught:
        make(checksums="SITE/SUMS", signature="SITE/sign")

    text = str(caught.value)
    assert "key 'image.checksums': what comes by http:// can be changed" in text
    assert "key 'image.signature': it needs image.keyring" in text


@pytest.mark.parametrize(
    ("keyring", "why"),
    [("/none/keys.gpg", "cannot be read: No such file"), ("/etc/hostname", "No key of /etc/hostname")],
)
def test_keys_that_are_none(
    keyring: str, why: str, site: Path, make: Callable[..., Machine], fetch: Callable[..., list[Step]]
) -> None:
    (site / "sign").write_bytes(b"none")
    machine = make(keyring=b"x", signature="SITE/sign")
    image = structs.replace(machine.image, keyring=keyring)

    with pytest.raises(QemuSpawnerError, match=why):
        fetch(structs.replace(machine, image=image))


KNOWN = [
    machine
    for machine in load_catalogue([EXAMPLE_MACHINES], Path("/none")).machines.values()
    if machine.image.url
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda machine: machine.id)
def test_the_entries_that_come_with_us_are_fetched_as_they_are_published(
    known: Machine,
    site: Path,
    state: StatePaths,
    signer: Signer,
    fetch: Callable[[Machine], list[Step]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From a site of ours in the place of theirs: what the list names is what is fetched, in its format."""
    # Else by https, and from nowhere but there: `find_url_problem` is tried elsewhere.
    monkeypatch.setattr(download, "find_url_problem", lambda url, is_checked: "")
    url = (state.root / "url").read_text()
    disk = guests.make_disk(tmp_path / "disk", known.image.format)
    digest = hashlib.sha512(disk.read_bytes()).hexdigest()
    name = PurePosixPath(urlsplit(known.image.url).path).name
    sums = f"{digest}\n" if name in known.image.checksums else f"SHA512 ({name}) = {digest}\n"
    for address, content in (
        (known.image.url, disk.read_bytes()),
        (known.image.checksums, sums.encode()),
        (known.image.signature, signer.run("--detach-sign", content=sums.encode())),
    ):
        if address:
            path = site / urlsplit(address).path.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (tmp_path / "keys").write_bytes(signer.run("--export"))
    image = structs.replace(
        known.image,
        file=str(state.images / known.id / Path(known.image.file).name),
        keyring=str(tmp_path / "keys") if known.image.keyring else "",
        **{
            key: address and f"{url}{urlsplit(address).path}"
            for key in ("url", "checksums", "signature")
            if (address := getattr(known.image, key)) is not None
        },
    )

    fetch(structs.replace(known, image=image))

    assert Path(image.file).read_bytes() == disk.read_bytes()
    assert known.hidden
    assert known.image.checksums.startswith("https://")


# It has no systemd, by whose unit of the console it is done: its machine.toml says so.
NOT_LOGGED_IN = {"alpine-3-23-cloud"}


@pytest.mark.parametrize(
    "known", [machine for machine in KNOWN if machine.id.endswith("-cloud")], ids=lambda machine: machine.id
)
def test_whoever_starts_a_cloud_image_is_logged_in(known: Machine) -> None:
    """It has no password, so that a login prompt would be all there is."""
    lets_in = known.id not in NOT_LOGGED_IN

    assert known.has_seed is lets_in
    assert known.sudo is lets_in
