# SPDX-License-Identifier: Apache-2.0
"""What a verb may answer instead of a result. Codes below 100 are the specification's, the others are ours.

CniError
├── VersionError          1  a version, or a verb in that version, that is not spoken here
├── FieldError            2  a field of the network configuration that is not known
├── ContainerError        3  the container's network namespace is not there
├── VariableError         4  a CNI_* variable is missing or wrong
├── InputError            5  the network configuration could not be read
├── DecodeError           6  the network configuration is no JSON object
├── ConfigError           7  the network configuration contradicts itself
├── TryAgainError        11  not yet, but later
├── InternalError       100  a defect of the plugin
├── ExhaustedError      101  no address is left
├── ExistsError         102  this container has such an interface already
├── DifferenceError     103  CHECK: the attachment is not as ADD left it
├── NodeError           104  the kernel or the file system refused
├── DelegateError       its  another plugin failed; its own code, or 105
└── ServerError           -  the server cannot start
"""


class CniError(Exception):
    """The base of this package's errors.

    Args:
        message: one line.
        details: what helps to find the cause, or "".
    """

    code = 100

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class VersionError(CniError):
    """A version, or a verb in that version, that is not spoken here."""

    code = 1


class FieldError(CniError):
    """A field of the network configuration that is not known."""

    code = 2


class ContainerError(CniError):
    """The container's network namespace is not there."""

    code = 3


class VariableError(CniError):
    """A CNI_* variable is missing or wrong."""

    code = 4


class InputError(CniError):
    """The network configuration could not be read."""

    code = 5


class DecodeError(CniError):
    """The network configuration is no JSON object."""

    code = 6


class ConfigError(CniError):
    """The network configuration contradicts itself."""

    code = 7


class TryAgainError(CniError):
    """Not yet, but later."""

    code = 11


class InternalError(CniError):
    """A defect of the plugin."""

    code = 100


class ExhaustedError(CniError):
    """No address is left."""

    code = 101


class ExistsError(CniError):
    """This container has such an interface already."""

    code = 102


class DifferenceError(CniError):
    """The attachment is not as ADD left it."""

    code = 103


class NodeError(CniError):
    """The kernel or the file system refused."""

    code = 104


class DelegateError(CniError):
    """Another plugin failed; `code` is its own, where it gave one."""

    def __init__(self, message: str, details: str = "", code: int = 105) -> None:
        super().__init__(message, details)
        self.code = code


class ServerError(CniError):
    """The server cannot start."""
