import os
from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """One for all tests: three nodes that are idle."""
    if os.geteuid() != 0:
        pytest.skip("Nodes are network namespaces of their own, which root makes.")
    with running_cluster() as cluster:
        yield cluster
