#!/usr/bin/python3
"""Torque's commands as its manual describes them, for one host: jobs are processes of whoever submits them.

Called by the name of the command, in a folder that it may write to: its jobs lie there.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(sys.argv[0]).resolve().parent / "jobs"


def qsub(arguments: list[str]) -> None:
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    number = f"{len(list(FOLDER.iterdir())) + 1}.head"
    with tempfile.NamedTemporaryFile("w", delete=False) as script:
        script.write(sys.stdin.read())
    Path(script.name).chmod(0o644)
    process = subprocess.Popen(
        ["sh", script.name], cwd=given["-d"], env={"PATH": "/usr/bin:/bin"}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (FOLDER / number).write_text(f"{process.pid}\n{given['-N']}\n{script.name}\n")
    print(number)


def find(number: str) -> tuple[int, str]:
    try:
        pid, name, _ = (FOLDER / number).read_text().splitlines()
    except FileNotFoundError:
        sys.exit(f"qdel: Unknown Job Id Error {number}")
    return int(pid), name


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def qstat(_arguments: list[str]) -> None:
    jobs = ""
    for path in FOLDER.iterdir():
        pid, name = find(path.name)
        state = "<job_state>R</job_state>" if is_there(pid) else "<job_state>C</job_state>"
        owner = path.owner()
        jobs += (
            f"<Job><Job_Id>{path.name}</Job_Id><Job_Name>{escape(name)}</Job_Name>"
            f"<Job_Owner>{owner}@head</Job_Owner>{state}<exec_host>localhost/0</exec_host></Job>"
        )
    if jobs:
        print(f"<Data>{jobs}</Data>")


def send(number: str, *signals: signal.Signals) -> None:
    pid, _ = find(number)
    if not is_there(pid):
        sys.exit(f"qdel: Request invalid for state of job MSG=invalid state for job - COMPLETE {number}")
    for one in signals:
        os.killpg(pid, one)


def qsig(arguments: list[str]) -> None:
    send(arguments[2], signal.Signals[f"SIG{arguments[1]}"])


def qdel(arguments: list[str]) -> None:
    send(arguments[0], signal.SIGTERM, signal.SIGKILL)


if __name__ == "__main__":
    {"qsub": qsub, "qstat": qstat, "qsig": qsig, "qdel": qdel}[Path(sys.argv[0]).name](sys.argv[1:])
