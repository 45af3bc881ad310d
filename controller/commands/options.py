# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have."""

from typing import Any

import click

from bpf import address

output_flag = click.option(
    "--output", type=click.Choice(("table", "json")), default="table", show_default=True, help="For people or programs."
)


class AddressType(click.ParamType[bytes]):
    """An IP address, as the 16 bytes of the maps."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        try:
            return value if isinstance(value, bytes) else address.packed(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS = AddressType()
