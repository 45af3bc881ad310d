# SPDX-License-Identifier: Apache-2.0
"""One lab for each way of running it, shared by all tests of a session: two nodes, two servers, two clients.

Tests use the labs through `stage`. A test that does harm makes a lab of its own, with `fresh`.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from e2e.lab.cluster import Lab
from e2e.tests.stage import KINDS, Stage


@pytest.fixture(scope="session")
def _stages() -> Iterator[Callable[[str], Stage]]:
    """Stages by kind, each made when it is first asked for, all removed at the end."""
    made: dict[str, Stage] = {}

    def stage(kind: str) -> Stage:
        if kind not in made:
            lab = Lab(f"test-{os.getpid()}-{kind}")
            try:
                made[kind] = Stage(lab, kind)
                made[kind].set_up()
            except BaseException:
                lab.down()
                raise
        return made[kind]

    yield stage
    for one in made.values():
        one.down()


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest, _stages: Callable[[str], Stage]) -> Stage:
    """The shared stage of each kind."""
    return _stages(request.param)


@pytest.fixture
def directory_stage(_stages: Callable[[str], Stage]) -> Stage:
    """The shared stage that follows a directory."""
    return _stages("directory")


@pytest.fixture
def api_stage(_stages: Callable[[str], Stage]) -> Stage:
    """The shared stage that follows an API server."""
    return _stages("api")


@pytest.fixture
def fresh() -> Iterator[Lab]:
    """A lab of the test's own, without nodes."""
    with Lab(f"test-{os.getpid()}-fresh") as lab:
        yield lab
