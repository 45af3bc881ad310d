# SPDX-License-Identifier: Apache-2.0
"""How long tests of properties go on that do not say so themselves: some seconds, or as long as `make soak` lets them.
For the conftest.py of each package that has such tests.
"""

from typing import Any

from hypothesis import HealthCheck, settings

_PATIENT: dict[str, Any] = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}


def register() -> None:
    settings.register_profile("short", max_examples=50, stateful_step_count=30, **_PATIENT)
    settings.register_profile("soak", max_examples=3000, stateful_step_count=50, **_PATIENT)
    settings.load_profile("short")
