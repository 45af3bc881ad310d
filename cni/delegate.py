# SPDX-License-Identifier: Apache-2.0
"""Has another IPAM plugin give out addresses: finds it in CNI_PATH and executes it, as the specification says.

Not for the built-in allocator. `subprocess` is imported when a plugin is executed, not before.
"""

import json
import os
from collections.abc import Mapping

from cni import result
from cni.config import Json, Network, Request
from cni.errors import DelegateError, VariableError

# A little less than the launcher's patience: the server's answer must be there before that ends.
TIMEOUT_S = 50

# Nothing else of our own environment is another plugin's business.
_PASSED = ("PATH",)


def add(request: Request, network: Network) -> result.Result:
    """Has addresses reserved.

    Raises:
        VariableError: CNI_PATH does not lead to the plugin.
        DelegateError: the plugin failed; with its own code and message, where it gave one.
    """
    answer = result.parse(_decode(_execute(request, network, "ADD"), network))
    if not answer.ips:
        raise DelegateError(f"{_name(network)} gave no address")
    return answer


def delete(request: Request, network: Network) -> None:
    """Has addresses given back. Raises as `add`."""
    _execute(request, network, "DEL")


def check(request: Request, network: Network) -> None:
    """Has it checked that the addresses are still reserved. Raises as `add`."""
    _execute(request, network, "CHECK")


def _execute(request: Request, network: Network, verb: str) -> str:
    import subprocess

    command = _find(_name(network), request.path)
    try:
        process = subprocess.run(
            [command],
            input=json.dumps(network.raw),
            env=_environment(request, verb),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            pass_fds=request.held,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DelegateError(f"{command}: no answer to {verb} after {TIMEOUT_S} s") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DelegateError(f"{command}: {error}") from error
    if process.returncode:
        raise _failure(command, process.returncode, process.stdout, process.stderr)
    return process.stdout


def _find(name: str, path: tuple[str, ...]) -> str:
    for directory in path:
        candidate = os.path.join(directory, name)
        if os.path.isabs(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise VariableError(f"CNI_PATH: no IPAM plugin {name} in {':'.join(path) or 'it'}")


def _environment(request: Request, verb: str) -> Mapping[str, str]:
    args = ";".join(f"{key}={value}" for key, value in request.args.items())
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": request.container_id,
        "CNI_NETNS": request.netns,
        "CNI_IFNAME": request.ifname,
        "CNI_ARGS": args,
        "CNI_PATH": ":".join(request.path),
    }
    return variables | {name: os.environ[name] for name in _PASSED if name in os.environ}


def _failure(command: str, status: int, stdout: str, stderr: str) -> DelegateError:
    """The plugin's error object, else what it said."""
    try:
        answer = json.loads(stdout)
        return DelegateError(f"{command}: {answer['msg']}", str(answer.get("details", "")), int(answer["code"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        said = (stderr or stdout).strip()[-2000:]
        return DelegateError(f"{command} ended with status {status}", said)


def _decode(stdout: str, network: Network) -> Json:
    try:
        answer: Json = json.loads(stdout)
    except ValueError as error:
        raise DelegateError(f"{_name(network)} answered no JSON", stdout[-2000:]) from error
    return answer


def _name(network: Network) -> str:
    name: str = network.ipam["type"]
    return name
