"""A session that is a job takes on what it is given, and leaves nothing of that on its node."""

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import moved_clock
from sessions import PROGRAM
from smtp_server import make_certificate

from qemuspawner.batch import JobDocument, write_document
from qemuspawner.internal_tls import VARIABLES
from qemuspawner.spec import SPEC_VARIABLE


def test_a_job_that_is_killed_leaves_no_key_on_its_node(tmp_path: Path) -> None:
    """It has its keys all the same: the hub takes nothing from whoever cannot show its certificate."""
    certificate, context = make_certificate(tmp_path)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    files = (certificate.with_name("key.pem"), certificate, certificate)
    places = {"TMPDIR": tmp_path / "tmp", "HOME": tmp_path / "home"}
    for folder in places.values():
        folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        document = JobDocument(
            environment={
                SPEC_VARIABLE: moved_clock.make_spec().to_json(),
                "JUPYTERHUB_API_URL": f"https://localhost:{listener.getsockname()[1]}/hub/api",
                "JUPYTERHUB_API_TOKEN": "secret",
            },
            files={name: path.read_text() for name, path in zip(VARIABLES, files, strict=True)},
        )
        given = tmp_path / "document"
        given.write_text(write_document(document))
        with given.open() as descriptor:
            job = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "--job", "0"],
                stdin=descriptor,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **places},
            )
        try:
            listener.settimeout(60)
            connection, _ = listener.accept()
            connection.settimeout(60)
            with context.wrap_socket(connection, server_side=True) as hub:
                asked = hub.recv(4096)
                shown = hub.getpeercert(binary_form=True)
        finally:
            job.kill()
            job.wait()

    assert asked.startswith(b"POST /hub/api/users/alice/desktops//port ")
    assert shown == ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert [path for folder in places.values() for path in folder.rglob("*")] == []
