# SPDX-License-Identifier: Apache-2.0
"""The matrix: whoever asks, at whatever address, for whichever backend, by whichever way, is answered and known."""

from collections import Counter
from itertools import product

import pytest

from e2e.lab import runtime
from e2e.lab.node import Node
from e2e.lab.space import Space
from e2e.tests.matrix import (
    CELLS,
    FACTORS,
    HOST,
    HOST_PORT,
    IMPOSSIBLE,
    OUTSIDE,
    POD,
    PRODUCT,
    SAME_POD,
    SELECTION,
    Cell,
    why_impossible,
)
from e2e.tests.outside import CLIENT, CLUSTER_IP, MAPPED_PORT, SERVICES, Outside, route_cluster_ips, target
from e2e.tests.stage import pick

# What is printed of an answer: who gave it, whom he saw, and from which address and port it seems to come.
Answer = tuple[str, str, str, int] | str

TIMES = 3


@pytest.fixture(scope="module")
def asked() -> set[Cell]:
    """The cells that were asked, whatever the answer."""
    return set()


def test_cells_are_the_product_without_what_cannot_be() -> None:
    """Every combination is a cell, or is taken out by an entry of the table, each of which takes out so many."""
    assert len(PRODUCT) == len(set(PRODUCT)) == 4 * 7 * 2 * 5 * 5 * 2 * 3 * 2 == 16800
    taken_out = Counter(entry for cell in PRODUCT if (entry := why_impossible(cell)))
    assert taken_out == {entry: entry.how_many for entry in IMPOSSIBLE}
    assert len(CELLS) == 16800 - 1440 - 1536 - 768 - 672 == 12384


@pytest.mark.root
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("mode", "cell"), [pytest.param(cell.mode, cell, id="-".join(cell)) for cell in SELECTION])
def test_backend_answers_whoever_asks_and_knows_him(outside: Outside, cell: Cell, asked: set[Cell]) -> None:
    """Outside or within, by whatever address and way: the backend answers, from there, and knows who has asked."""
    answers = _answers(outside, cell)
    asked.add(cell)
    assert answers == {_wanted(outside, cell)}


@pytest.mark.root
def test_all_of_the_selection_was_asked(asked: set[Cell]) -> None:
    """None of the cells was passed over."""
    assert len(asked) == 39
    assert asked == set(SELECTION)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mode", "who"), list(product(FACTORS["mode"], FACTORS["who"])))
def test_every_cell_is_answered_likewise(outside: Outside, mode: str, who: str, asked: set[Cell]) -> None:
    """All of the matrix; what fails is told as a whole."""
    wrong = []
    for cell in CELLS:
        if (cell.mode, cell.who) == (mode, who):
            answers, wanted = _answers(outside, cell), _wanted(outside, cell)
            asked.add(cell)
            if answers != {wanted}:
                wrong.append(f"{'-'.join(cell)}: {answers}, not {wanted}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.root
@pytest.mark.soak
def test_all_of_the_matrix_was_asked(asked: set[Cell]) -> None:
    """None of the cells was passed over."""
    assert len(asked) == 12384
    assert asked == set(CELLS)


def _answers(outside: Outside, cell: Cell) -> set[Answer]:
    """What comes back, each time on a new socket."""
    entry = _entry(outside, cell)
    if cell.who == OUTSIDE and cell.address == CLUSTER_IP:
        route_cluster_ips(outside.client, entry)
    answers = outside.asker(_asker(outside, cell)).ask(cell.protocol, *_asked_at(entry, cell), count=TIMES)
    said = ("name", "peer", "believed_peer", "believed_port")
    return {answer.get("error") or tuple(answer[key] for key in said) for answer in answers}


def _wanted(outside: Outside, cell: Cell) -> Answer:
    (name,) = SERVICES[cell.service].pods
    address, port = _asked_at(_entry(outside, cell), cell)
    return name, _known_as(outside, cell, address), address, port


def _entry(outside: Outside, cell: Cell) -> Node:
    return outside.node(int(cell.entry[-1]))


def _home(outside: Outside, cell: Cell) -> Node:
    """The node of who asks, where he has one."""
    entry = _entry(outside, cell)
    return entry if cell.is_here else outside.node(3 - entry.index)


def _asker(outside: Outside, cell: Cell) -> Space:
    """Where somebody asks from: of the two pods that a node has of either kind, one serves."""
    if cell.who == OUTSIDE:
        return outside.client
    node, pod = _home(outside, cell), "web" if cell.backend == SAME_POD else "ask"
    if cell.who.startswith(HOST):
        return node.space
    return outside.pod(f"{pod}-{node.index}").space if cell.who.startswith(POD) else runtime.host_pod(node.space, pod)


def _known_as(outside: Outside, cell: Cell, asked: str) -> str:
    """As whom the backend should know him: by his own address, but for a pod that would see itself."""
    if cell.who == OUTSIDE:
        return pick(CLIENT, cell.family)
    node = _home(outside, cell)
    if not cell.who.startswith(POD):
        return pick(node.address, cell.family)
    return asked if cell.backend == SAME_POD else pick(outside.pod(f"ask-{node.index}").address, cell.family)


def _asked_at(entry: Node, cell: Cell) -> tuple[str, int]:
    """A pod in the host's network has the host's ports as its own: the one at which it listens."""
    if cell.address == HOST_PORT:
        return pick(entry.address, cell.family), runtime.PORT if cell.is_in_hosts_network else MAPPED_PORT
    return target(entry, SERVICES[cell.service], cell.address, cell.family)
