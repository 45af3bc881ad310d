# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in `controller`, besides what `bpf.errors` names.

ControllerError
├── ManifestError       an object or document cannot be understood; says at which line
├── AloneError          another controller runs on this node
├── InstallError        what is to be installed cannot be understood
├── DenyListError       the deny list cannot be read, has no room, or lacks what is to be taken out
├── NetworkError        a device or route could not be made or changed
└── ApiError            the API server did not do what was asked
    ├── ExpiredError    410: the resource version is too old; list again
    ├── RefusedError    401 or 403: says what is not permitted
    └── AbsentError     404: the server does not have this kind
"""


class ControllerError(Exception):
    """The base of this package's errors."""


class ManifestError(ControllerError):
    """An object or document cannot be understood.

    Attributes:
        line: where, counted from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class AloneError(ControllerError):
    """Another controller runs on this node."""


class InstallError(ControllerError):
    """What is to be installed cannot be understood."""


class DenyListError(ControllerError):
    """The deny list cannot be read, has no room for so many ranges, or lacks one that is to be taken out."""


class NetworkError(ControllerError):
    """A device or route could not be made or changed."""


class ApiError(ControllerError):
    """The API server did not do what was asked."""


class ExpiredError(ApiError):
    """410: the resource version is too old; list again."""


class RefusedError(ApiError):
    """401 or 403; the message says what is not permitted."""


class AbsentError(ApiError):
    """404: the server does not have this kind."""
