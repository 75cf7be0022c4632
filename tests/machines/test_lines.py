"""The line of a key, in texts as people write them and as nobody should."""

import pytest

from qemuspawner.machines.lines import find_line

TEXT = """\
# name = "no"
name = "Rocky"
'quoted' = 1
ports = { web = 80 }
allow.users = [
  ["a"],
  [1, 2]
]

[cpus] # how many
offered = [1]
[ image . more ]
  file="x"
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 2),
        ("quoted", 3),
        ("ports.web", 4),
        ("allow.users", 5),
        ("allow.users[1]", 5),
        ("cpus", 10),
        ("cpus.offered[0]", 11),
        ("cpus.default", 10),
        ("image.more.file", 13),
        ("nothing", 0),
        ("", 0),
    ],
)
def test_the_line_of_a_key(key: str, line: int) -> None:
    assert find_line(TEXT, key) == line


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["[", "[ ", " ", "a.", "a ", '"', "[]", "=", "[a]#"])
def test_a_line_of_many_kilobytes_takes_no_time(piece: str) -> None:
    """A form that is quadratic in a line's length would take minutes."""
    find_line(piece * 200_000, "name")
