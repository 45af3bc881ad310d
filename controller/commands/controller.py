# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf controller`: runs the controller in the foreground."""

import click

from bpf.cli import settings_flags
from bpf.settings import Settings
from controller import daemon


@click.command("controller")
@settings_flags()
def command(settings: Settings) -> None:
    """Mirror Services and routes into the data plane, until SIGTERM."""
    daemon.run(settings)
