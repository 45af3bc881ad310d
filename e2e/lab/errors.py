# SPDX-License-Identifier: Apache-2.0
"""The lab's one exception."""


class LabError(Exception):
    """The lab cannot do what it was asked for; the message says why."""
