# SPDX-License-Identifier: Apache-2.0
"""What can go wrong below `cni` and `controller`.

BpfError
├── BpftoolError        bpftool is missing or failed
│   └── BatchError      a line of a batch failed; says which, and whether its map is full
├── LayoutError         a pinned map has another layout than this version's
├── NotLoadedError      the programs or maps are not loaded on this node
├── KernelError         the kernel lacks something that nothing here can do without
└── SettingsError       a setting is unknown or wrong; says where it stands
"""


class BpfError(Exception):
    """The base of this package's errors."""


class BpftoolError(BpfError):
    """bpftool is missing, failed, or answered nonsense."""


class BatchError(BpftoolError):
    """An entry of several was not written.

    Attributes:
        line: the line as it was given to bpftool, or the map and the key.
        full: the map took no more entries.
    """

    def __init__(self, message: str, line: str, full: bool) -> None:
        super().__init__(message)
        self.line = line
        self.full = full


class LayoutError(BpfError):
    """A pinned map has another layout than this version's."""


class NotLoadedError(BpfError):
    """The programs or maps are not loaded on this node."""


class KernelError(BpfError):
    """The kernel lacks something that nothing here can do without."""


class SettingsError(BpfError):
    """A setting is unknown or wrong; the message says where it stands."""
