"""Images from a server that does not always behave: nothing but the right image is ever put in place."""

import hashlib
import resource
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import guests
import pytest
from msgspec import structs

from qemuspawner.errors import ImageError, MachineError, QemuSpawnerError
from qemuspawner.machine import Machine
from qemuspawner.machines import download, fetch, image_files
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.machines.fetch import fetch_image
from qemuspawner.machines.image_files import Step, import_image
from qemuspawner.paths import DIGESTS, StatePaths
from qemuspawner.qemu.digests import find_digest

# Large enough that a connection can break in the middle.
CONTENT = guests.BOOT_SECTOR + bytes(range(256)) * 12_000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

MACHINE = """
name = "Alma"
[image]
file = "disk.img"
format = "raw"
"""


class Site(BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, str | None]]]
    content: ClassVar[bytes] = CONTENT
    tag: ClassVar[str] = '"one"'

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append((self.path, asked))
        is_first = len(self.asked) == 1
        match self.path:
            case "/image":
                self._answer(asked)
            case "/breaks":
                self._answer(asked, cut=len(self.content) // 2 if is_first else None)
            case "/always-breaks":
                self._answer(asked, cut=0)
            case "/no-ranges":
                self._answer(None, cut=1000 if is_first else None)
            case "/wrong-range":
                self._answer(None, cut=1000) if is_first else self._send(206, self.content, "bytes 5-9/10")
            case "/changes":
                self._answer(asked, cut=1000 if is_first else None)
                type(self).tag = '"two"'
            case "/huge":
                self._send(200, b"", length=1 << 50)
            case "/shorter-than-said":
                self._send(200, self.content, length=len(self.content) + 5, cut=len(self.content))
            case "/longer-than-said":
                self._send(200, self.content, length=len(self.content) - 5)
            case "/endless":
                self._send(200, self.content, length=None)
            case "/packed":
                self._send(200, self.content, encoding="gzip")
            case "/down":
                self._send(503 if is_first else 200, self.content)
            case path if path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", path.removeprefix("/to/"))
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "/round":
                self.send_response(302)
                self.send_header("Location", "/round")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                self._send(404, b"")

    def _answer(self, asked: str | None, *, cut: int | None = None) -> None:
        if asked is None or self.headers.get("If-Range", self.tag) != self.tag:
            self._send(200, self.content, cut=cut)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-"))
        if first >= len(self.content):
            self._send(416, b"", f"bytes */{len(self.content)}")
            return
        where = f"bytes {first}-{len(self.content) - 1}/{len(self.content)}"
        self._send(206, self.content[first:], where, cut=cut)

    def _send(
        self, status: int, body: bytes, where: str = "", *, cut: int | None = None,
        length: int | None = -1, encoding: str = "",
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("ETag", self.tag)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        if where:
            self.send_header("Content-Range", where)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = cut is not None or length is None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[type[Site]]:
    kind = type("Site", (Site,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    return StatePaths(root=tmp_path)


@pytest.fixture
def machine(write_machine: Callable[..., Path], state: StatePaths) -> Machine:
    return load_machine(write_machine(MACHINE, name="alma"), state.images)


@pytest.fixture
def get(site: Any, machine: Machine, state: StatePaths) -> Callable[..., list[Step]]:
    """Fetch what the site has at a path; the steps that were told."""

    def run(path: str, **more: Any) -> list[Step]:
        steps: list[Step] = []
        options = {"digest": DIGEST, "between_tries_s": 0.0, **more}
        fetch_image(machine, state=state, progress=steps.append, url=site.url + path, **options)
        return steps

    return run


def image_of(machine: Machine) -> bytes | None:
    path = Path(machine.image.file)
    return path.read_bytes() if path.exists() else None


def names(machine: Machine) -> list[str]:
    return sorted(path.name for path in Path(machine.image.file).parent.iterdir())


def test_an_image_is_fetched_checked_and_readable(get: Callable[..., list[Step]], machine: Machine) -> None:
    steps = get("/image")

    assert image_of(machine) == CONTENT
    assert names(machine) == [DIGESTS, "disk.img"]
    assert Path(machine.image.file).stat().st_mode & 0o777 == 0o444
    assert steps[-1] == Step(step="done", done=len(CONTENT), total=len(CONTENT))
    assert {step.step for step in steps} == {"fetching", "checking", "done"}


def test_a_connection_that_breaks_is_gone_on_with(
    get: Callable[..., list[Step]], machine: Machine, site: Any
) -> None:
    get("/breaks")

    assert image_of(machine) == CONTENT
    assert [asked for _, asked in site.asked] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_what_was_interrupted_goes_on_the_next_time(
    get: Callable[..., list[Step]], machine: Machine, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MAX_TRIES", 1)
    with pytest.raises(MachineError, match="stopped: "):
        get("/breaks")

    get("/breaks")

    assert image_of(machine) == CONTENT
    assert site.asked[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_what_has_come_whole_is_not_fetched_again(
    get: Callable[..., list[Step]], machine: Machine, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as where the command was killed while it checked the digest."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "put_in_place", stop)
        with pytest.raises(KeyboardInterrupt):
            get("/image")

    get("/image")

    assert image_of(machine) == CONTENT
    assert site.asked[-1][1] == f"bytes={len(CONTENT)}-"


def test_a_server_without_ranges_begins_again(get: Callable[..., list[Step]], machine: Machine) -> None:
    get("/no-ranges")

    assert image_of(machine) == CONTENT


def test_another_file_than_the_one_begun_is_fetched_from_its_start(
    get: Callable[..., list[Step]], machine: Machine, site: Any
) -> None:
    get("/changes")

    assert image_of(machine) == CONTENT


def test_without_validator_and_digest_nothing_is_put_together(
    get: Callable[..., list[Step]], machine: Machine, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By https, which is not at hand here."""
    monkeypatch.setattr(fetch, "find_url_problem", lambda url, is_checked: "")
    site.tag = "W/weak"

    get("/breaks", digest="")

    assert image_of(machine) == CONTENT
    assert [asked for _, asked in site.asked] == [None, None]


def test_a_server_that_is_down_for_a_moment_is_asked_again(
    get: Callable[..., list[Step]], machine: Machine
) -> None:
    get("/down")

    assert image_of(machine) == CONTENT


def test_redirects_are_followed(get: Callable[..., list[Step]], machine: Machine, site: Any) -> None:
    get(f"/to/{site.url}/image")

    assert image_of(machine) == CONTENT


@pytest.mark.parametrize("path", ["/shorter-than-said", "/longer-than-said"])
def test_a_server_that_lies_about_the_length_is_not_believed(
    get: Callable[..., list[Step]], machine: Machine, path: str
) -> None:
    with pytest.raises(QemuSpawnerError, match=r"stopped: |has the digest"):
        get(path)

    assert image_of(machine) is None


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nothing", "the server answers 404"),
        ("/always-breaks", "stopped"),
        ("/huge", "or more; 256 GiB are allowed"),
        ("/packed", "the server compresses it"),
        ("/wrong-range", "another part than that which was asked for"),
        ("/round", "more than 5 times"),
        ("/to/file:///etc/passwd", "leads to another address"),
        ("/to/ftp://x.org/a", "leads to another address"),
        ("/to/http://user:secret@x.org/a", "leads to another address"),
    ],
)
def test_what_is_refused_leaves_the_old_image(
    get: Callable[..., list[Step]], machine: Machine, path: str, why: str
) -> None:
    Path(machine.image.file).parent.mkdir(parents=True)
    Path(machine.image.file).write_text("old")

    with pytest.raises(MachineError, match=why):
        get(path)

    assert image_of(machine) == b"old"


def test_another_digest_is_refused_and_the_draft_deleted(
    get: Callable[..., list[Step]], machine: Machine
) -> None:
    with pytest.raises(ImageError, match=f"has the digest {DIGEST}, and not sha256:0000"):
        get("/image", digest=f"sha256:{'0' * 64}")

    assert names(machine) == []


def test_another_format_is_refused_by_its_header(
    get: Callable[..., list[Step]], site: Any, machine: Machine
) -> None:
    content = b"QFI\xfb" + CONTENT
    site.content = content

    with pytest.raises(ImageError, match=r"'disk.img' is refused: machine.toml says raw.*qcow2"):
        get("/image", digest=f"sha256:{hashlib.sha256(content).hexdigest()}")

    assert names(machine) == []


def test_a_file_without_end_stops_at_the_limit(get: Callable[..., list[Step]], machine: Machine) -> None:
    with pytest.raises(MachineError, match="1 MiB are allowed"):
        get("/endless", max_mib=1)

    assert not (Path(machine.image.file).parent / ".draft" / "disk.img").exists()


def test_a_disk_without_room_is_said_before_anything_is_written(
    get: Callable[..., list[Step]], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "SPARE_BYTES", 1 << 60)

    with pytest.raises(MachineError, match=r"takes 3 MiB more; .* are free"):
        get("/image")

    assert image_of(machine) is None


def test_a_disk_that_is_full_half_way_is_given_its_room_back(
    get: Callable[..., list[Step]], machine: Machine
) -> None:
    """A limit of this process takes the disk's place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(MachineError, match="cannot be written: File too large"):
            get("/image")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names(machine) == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://x.org/a", "can be changed on its way"),
        ("https://user:secret@x.org/a", "a name or password"),
        ("ftp://x.org/a", "is not of the form"),
        ("https:///a", "is not of the form"),
        ("https://x.org:port/a", "is not a URL"),
        ("https://x.org/ä\n", "is not a URL"),
        ("file://host/a", "names no file"),
        ("", "It is not known where"),
    ],
)
def test_urls_that_are_none(machine: Machine, state: StatePaths, url: str, why: str) -> None:
    with pytest.raises(MachineError, match=why):
        fetch_image(machine, state=state, progress=print, url=url)


def test_the_url_and_digest_of_machine_toml_are_taken(machine: Machine, state: StatePaths, site: Any) -> None:
    image = structs.replace(machine.image, url=f"{site.url}/image", digest=DIGEST)

    fetch_image(structs.replace(machine, image=image), state=state, progress=lambda _: None)

    assert image_of(machine) == CONTENT


def test_a_file_of_this_host_is_copied(machine: Machine, state: StatePaths, tmp_path: Path) -> None:
    source = tmp_path / "an image"
    source.write_bytes(CONTENT)

    fetch_image(machine, state=state, progress=lambda _: None, url=f"file://{tmp_path}/an%20image")

    assert image_of(machine) == CONTENT
    assert source.exists()


def test_two_at_a_time_are_one_too_many(machine: Machine, state: StatePaths, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(CONTENT)
    with image_files.draft_of(machine, state), pytest.raises(MachineError, match="is being made already"):
        import_image(machine, source, state=state, progress=print)


@pytest.mark.parametrize("move", [False, True])
def test_a_file_is_imported(machine: Machine, state: StatePaths, tmp_path: Path, move: bool) -> None:
    source = tmp_path / "image"
    source.write_bytes(CONTENT)

    import_image(machine, source, state=state, progress=lambda _: None, digest=DIGEST, move=move)

    assert image_of(machine) == CONTENT
    assert source.exists() is not move
    assert find_digest(Path(machine.image.file)) == DIGEST


@pytest.mark.parametrize("how", ["import", "file: URL"])
def test_a_disk_that_fills_while_a_file_is_copied_leaves_the_old_image(
    how: str, machine: Machine, state: StatePaths, tmp_path: Path
) -> None:
    source = tmp_path / "image"
    source.write_bytes(CONTENT)
    Path(machine.image.file).parent.mkdir(parents=True)
    Path(machine.image.file).write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(MachineError, match="cannot be written: File too large"):
            if how == "import":
                import_image(machine, source, state=state, progress=lambda _: None)
            else:
                fetch_image(machine, state=state, progress=lambda _: None, url=f"file://{source}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert image_of(machine) == b"old"
    assert names(machine) == ["disk.img"]


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_only_files_are_imported(machine: Machine, state: StatePaths, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "folder":
        source.mkdir()

    with pytest.raises(QemuSpawnerError, match=r"cannot be opened|is not a file"):
        import_image(machine, source, state=state, progress=print)


def test_an_image_elsewhere_or_built_is_not_replaced(machine: Machine, state: StatePaths) -> None:
    elsewhere = structs.replace(machine, image=structs.replace(machine.image, file="/srv/disk.img"))

    with pytest.raises(MachineError, match="which is only read"):
        import_image(elsewhere, Path("/dev/null"), state=state, progress=print)
