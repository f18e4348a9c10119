"""A cluster for the tests that are marked `slurm`."""

from __future__ import annotations

import pytest

from tests.slurm_cluster import Cluster, missing


def pytest_configure(config):
    config.addinivalue_line("markers", "slurm: starts a real Slurm on this machine, skips without its packages")


@pytest.fixture(scope="session")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster
