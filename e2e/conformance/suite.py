# SPDX-License-Identifier: Apache-2.0
"""Which of upstream's tests are run: pure, by their full names.

A name is `[sig-network] Services should … [Conformance]`; the word after the bracket is the test's group.
"""

import re
from collections.abc import Iterable

SIG = "[sig-network] "
GROUPS = ("EndpointSlice", "HostPort", "Networking", "Services")
CONFORMANCE = "[Conformance]"
NOT_SPECIAL = r"\\\g<0>"

# Part of a name, and why such a test is not run: no cluster that is made like this one could pass it.
LEFT_OUT = {
    "[Feature:Networking-DNS]": "needs the Internet",
    "[Feature:Networking-IPv4]": "needs the Internet",
    "[Feature:Networking-IPv6]": "needs the Internet",
    "[Feature:Networking-Performance]": "measures by iperf2, and promises nothing",
    "[Feature:SCTPConnectivity]": "for clusters that have SCTP",
}


def belongs(name: str) -> bool:
    """Whether a test is of those that this project answers for: run, or left out with a reason."""
    return name.startswith(SIG) and (name.endswith(CONFORMANCE) or group(name) in GROUPS)


def group(name: str) -> str:
    return name.removeprefix(SIG).partition(" ")[0]


def left_out(name: str) -> str:
    """Why a test is not run; "" for one that is."""
    return next((reason for part, reason in LEFT_OUT.items() if part in name), "")


def chosen(names: Iterable[str], focus: str = "") -> list[str]:
    """Of all tests those that belong, and in which the regular expression `focus` is found."""
    return sorted(name for name in names if belongs(name) and re.search(focus, name))


def expression(names: Iterable[str]) -> str:
    """A regular expression in Go's syntax, as ginkgo's --focus takes it, that finds these tests and no others.

    Ginkgo looks in the name of the whole suite, a space, and the test's name.
    """
    return f" ({'|'.join(re.sub(r'[^A-Za-z0-9 ]', NOT_SPECIAL, name) for name in names)})$"
