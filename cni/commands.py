# SPDX-License-Identifier: Apache-2.0
"""The command `calico-ebpf cni-server`."""

import logging
import sys

import click
import structlog

from bpf.cli import settings_flags
from bpf.settings import Settings
from cni import server


@click.command("cni-server")
@settings_flags(
    "run_dir", "bpffs", "objects_dir", "cni_networks_dir", "network_file", "cni_conf_dir", "proc_sys", "log_level"
)
def command(settings: Settings) -> None:
    """Run the CNI plugin's warm server."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    server.run(settings)
