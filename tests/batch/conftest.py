import os
from collections.abc import Iterator

import pytest
from gridengine_cell import GridEngineCell, running_cell


@pytest.fixture(scope="session")
def cell() -> Iterator[GridEngineCell]:
    """One for all tests: one execution host."""
    if os.geteuid() != 0:
        pytest.skip("An execution host starts jobs as other accounts, which root does.")
    with running_cell() as cell:
        yield cell
