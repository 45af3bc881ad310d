# SPDX-License-Identifier: Apache-2.0
"""The name of a pod link's host end: who makes links, and whoever must tell them from other devices, agree by it.

conf/host and the lab have the pattern, too, in languages of their own. Any module may import this one.
"""

import re

# As long as names can be told apart in a table, and no longer than the kernel allows.
_PREFIX, _DIGITS = "ce", 11
_PATTERN = re.compile(f"{_PREFIX}[0-9a-f]{{{_DIGITS}}}")


def name(digest: str) -> str:
    """Of the link that a hexadecimal digest stands for."""
    return _PREFIX + digest[:_DIGITS]


def is_name(device: str) -> bool:
    """Whether a device is the host end of a pod link."""
    return _PATTERN.fullmatch(device) is not None
