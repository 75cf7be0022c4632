"""That nothing is promised without a proof."""

import re
from pathlib import Path

from proofs import GOALS


def test_every_goal_has_a_proof() -> None:
    proofs = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    assert set(re.findall(r'mark\.goal\("(\w+)"\)', proofs)) == set(GOALS)
