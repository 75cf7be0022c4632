import pytest
from proofs import Proof, find_goal


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Proof:
    """What the proof is of, how long it is to be, and where it writes what it found."""
    goal = find_goal(request.node)
    assert goal is not None, f"{request.node.nodeid} does not say which goal it proves"
    return Proof(goal, full=request.config.getoption("full"), node=request.node)
