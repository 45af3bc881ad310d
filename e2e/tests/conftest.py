# SPDX-License-Identifier: Apache-2.0
"""One lab for each way of running it, shared by all tests of a session: two nodes, two servers, two clients.

Tests use the labs through `stage`, those of external traffic through `outside`. A test that does harm makes a lab of
its own, with `fresh`. What carries the marker `soak` runs when it is asked for alone: `pytest -m soak`.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from e2e.lab.cluster import Lab
from e2e.tests.outside import Outside
from e2e.tests.stage import KINDS, Stage


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what belongs to the soak, unless the marker is asked for."""
    if "soak" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


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


@pytest.fixture(scope="session")
def _outsides() -> Iterator[Callable[..., Outside]]:
    """The stages of external traffic by mode and MTU, likewise."""
    made: dict[tuple[str, int], Outside] = {}

    def outside(mode: str, mtu: int = 1500) -> Outside:
        if (mode, mtu) not in made:
            lab = Lab(f"test-{os.getpid()}-{mode}-{mtu}")
            try:
                made[mode, mtu] = Outside(lab, mode, mtu)
                made[mode, mtu].set_up()
            except BaseException:
                made.pop((mode, mtu), None)
                lab.down()
                raise
        return made[mode, mtu]

    yield outside
    for one in made.values():
        one.down()


@pytest.fixture
def mtu() -> int:
    """The underlay's, where a test is not parametrized with others."""
    return 1500


@pytest.fixture
def outside(mode: str, mtu: int, _outsides: Callable[..., Outside]) -> Outside:
    """The shared stage of external traffic in the mode, and of the MTU, that a test is parametrized with."""
    return _outsides(mode, mtu)


@pytest.fixture
def fresh() -> Iterator[Lab]:
    """A lab of the test's own, without nodes."""
    with Lab(f"test-{os.getpid()}-fresh") as lab:
        yield lab
