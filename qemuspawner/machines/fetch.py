"""A machine's image fetched from where its machine.toml says: checked before it counts, by what is published.

What it must be say image.digest, or else a list of digests or a signature that lies beside it: see `Image`.
"""

import asyncio
import logging
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from qemuspawner.errors import ImageError, MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import find_url_problem, is_checked
from qemuspawner.machines.checksums import find_digest
from qemuspawner.machines.download import Download, fetch_document
from qemuspawner.machines.image_files import (
    Progress,
    Step,
    check_draft,
    copy_file,
    digest_of,
    draft_of,
    make_draft_folder,
    put_in_place,
)
from qemuspawner.machines.signatures import check_detached, read_signed
from qemuspawner.paths import StatePaths

log = logging.getLogger(__name__)

MAX_MIB = 256 * 1024

_BETWEEN_TRIES_S = 2.0


def fetch_image(
    machine: Machine,
    *,
    state: StatePaths,
    progress: Progress,
    url: str = "",
    digest: str = "",
    max_mib: int = MAX_MIB,
    convert: bool = False,
    between_tries_s: float = _BETWEEN_TRIES_S,
) -> None:
    """Fetch the image from `url`, or else as machine.toml says, and put it in place.

    Interrupted it keeps what has come, and goes on there the next time where the server says that the file is
    still the same, or a digest will. With a `url` that is not the machine's, what machine.toml says of
    its own does not count. An image that is in place already is not fetched again, where its digest is known.

    Raises:
        MachineError, ImageError: It cannot be; the old image is still in place.
    """
    image = machine.image
    is_own = url in ("", image.url)
    sources = [image.url, *image.mirrors] if is_own else [url]
    if not sources[0]:
        raise MachineError(
            f"It is not known where the image of '{machine.id}' comes from.",
            hint="Set image.url in its machine.toml, or give a URL.",
        )
    for source in sources:
        if problem := find_url_problem(source, is_checked=bool(digest) or (is_own and is_checked(image))):
            raise MachineError(f"No image is fetched from there: {problem}.")
    with draft_of(machine, state) as draft:
        if not digest and is_own:
            digest = image.digest or _find_published_digest(machine)
        if _is_there(machine, digest, progress):
            return
        fetching = _Fetching(
            machine,
            draft,
            digest=digest,
            signature=image.signature if is_own and not image.checksums else "",
            progress=progress,
            max_bytes=max_mib << 20,
            convert=convert,
            between_tries_s=between_tries_s,
        )
        fetching.run(sources)
        put_in_place(machine, draft, state=state, progress=progress, convert=convert)


class _Fetching:
    """One image, from the first source that has it."""

    def __init__(
        self,
        machine: Machine,
        draft: Path,
        *,
        digest: str,
        signature: str,
        progress: Progress,
        max_bytes: int,
        convert: bool,
        between_tries_s: float,
    ) -> None:
        self._machine = machine
        self._draft = draft
        self._digest = digest
        self._signature = signature
        self._progress = progress
        self._max_bytes = max_bytes
        self._convert = convert
        self._between_tries_s = between_tries_s

    def run(self, sources: list[str]) -> None:
        """Raises MachineError or ImageError where none of them has it."""
        failures: list[MachineError | ImageError] = []
        for source in sources:
            if failures:
                log.warning("%s Trying %s.", failures[-1].message, source)
            try:
                self._take(source)
            except (MachineError, ImageError) as exc:
                failures.append(exc)
            else:
                return
        if len(failures) == 1:
            raise failures[0]
        raise MachineError(
            f"The image of '{self._machine.id}' cannot be had from any of its {len(sources)} addresses; "
            f"the last one: {failures[-1].message}",
            hint=failures[-1].hint,
        ) from failures[-1]

    def _take(self, source: str) -> None:
        begun = self._draft.exists()
        try:
            self._bring(source)
        except ImageError:
            # What another source has begun may be what is wrong.
            if not begun:
                raise
            self._bring(source)

    def _bring(self, source: str) -> None:
        """All of it, and checked; else a wrong one is deleted."""
        make_draft_folder(self._draft)
        if urlsplit(source).scheme == "file":
            self._draft.unlink(missing_ok=True)
            copy_file(self._machine, _path_of(source), self._draft, progress=self._progress)
        else:
            download = Download(
                self._machine,
                source,
                self._draft,
                digest=self._digest,
                is_checked=bool(self._digest or self._signature),
                progress=self._progress,
                max_bytes=self._max_bytes,
            )
            asyncio.run(download.run(self._between_tries_s))
        check_draft(
            self._machine, self._draft, digest=self._digest, progress=self._progress, convert=self._convert
        )
        if self._signature:
            self._check_signature()

    def _check_signature(self) -> None:
        signature = fetch_document(self._machine, self._signature, is_checked=True)
        size = self._draft.stat().st_size
        self._progress(Step(step="checking", done=0, total=size))
        try:
            check_detached(self._draft, signature, Path(self._machine.image.keyring))
        except ImageError:
            self._draft.unlink()
            raise
        self._progress(Step(step="checking", done=size, total=size))


def _find_published_digest(machine: Machine) -> str:
    """What the distribution says of the image, "" where it is not asked.

    Raises:
        MachineError, ImageError: It does not say anything of it, or the list is not signed as it should be.
    """
    image = machine.image
    if not image.checksums:
        return ""
    document = fetch_document(machine, image.checksums, is_checked=bool(image.keyring))
    if image.keyring:
        signature = fetch_document(machine, image.signature, is_checked=True) if image.signature else None
        document = read_signed(document, Path(image.keyring), signature=signature)
    name = PurePosixPath(unquote(urlsplit(image.url).path)).name
    return find_digest(document.decode(errors="replace"), name)


def _is_there(machine: Machine, digest: str, progress: Progress) -> bool:
    """Whether the image in place is the one that is to be fetched."""
    file = Path(machine.image.file)
    if not digest or not file.is_file() or digest_of(file, like=digest, progress=progress) != digest:
        return False
    size = file.stat().st_size
    progress(Step(step="done", done=size, total=size))
    return True


def _path_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
