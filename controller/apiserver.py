# SPDX-License-Identifier: Apache-2.0
"""The API server, by the official client, which brings configuration, credentials and transport; its models are not
used. The only importer of kubernetes."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import urllib3
import yaml
from kubernetes import client, config

from controller.errors import AbsentError, ApiError, ExpiredError, RefusedError
from controller.model import Pod

PODS = "/api/v1/pods"
CONNECT_S = 5
LIST_READ_S = 60


class Status(msgspec.Struct):
    """What the server says of a request that it refuses, and in a watch that it ends."""

    message: str = ""
    code: int = 0


class _Pods(msgspec.Struct):
    items: list[Pod] | None = None


decode_status = msgspec.json.Decoder(Status).decode
_pods = msgspec.json.Decoder(_Pods)


class ApiServer:
    """Args:
    kubeconfig: None: the pod's service account, else the variable KUBECONFIG.
    api_server: where the pod's service account is used; "" is the address that Kubernetes tells pods.
    """

    def __init__(self, kubeconfig: Path | None, api_server: str) -> None:
        self._kubeconfig = kubeconfig
        self._api_server = api_server
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self, path: str, query: dict[str, str], read_s: float) -> urllib3.BaseHTTPResponse:
        """An answer with its body still to be read.

        Raises:
            ExpiredError, RefusedError, AbsentError, ApiError: as the server answered, or did not.
        """
        try:
            api = self._connected()
            method, url, headers, _, _ = api.param_serialize(
                "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
            )
            headers["Accept"] = "application/json"
            answer: urllib3.BaseHTTPResponse = api.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s),
            )
            if answer.status != 200:
                body = answer.read()
                answer.release_conn()
                raise self._refusal(path, answer.status, body)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(f"GET {path}: {error}") from error
        return answer

    def addresses_on(self, node: str) -> list[str] | None:
        """The addresses of the pods that are assigned to a node; None where there are no such pods.

        Raises:
            RefusedError, ApiError: as the server answered, or did not.
        """
        query = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        answer = self.get(PODS, query, LIST_READ_S)
        try:
            pods = _pods.decode(answer.read()).items
        except (urllib3.exceptions.HTTPError, OSError, msgspec.MsgspecError) as error:
            raise ApiError(f"GET {PODS}: {error}") from error
        finally:
            answer.release_conn()
        return [item.ip for pod in pods for item in pod.status.pod_ips or ()] if pods else None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = client.ApiClient(self._configuration())
            return self._client

    def _configuration(self) -> Any:
        """Raises ApiError."""
        made = client.Configuration()
        try:
            if self._kubeconfig:
                config.load_kube_config(config_file=str(self._kubeconfig), client_configuration=made)
            else:
                _load_default(made, self._api_server)
        except (
            config.ConfigException,
            yaml.YAMLError,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            # The client checks little of a kubeconfig's shape before it reaches into it.
            raise ApiError(f"no way to the API server: {error}") from error
        made.retries = False
        return made

    def _refusal(self, path: str, status: int, body: bytes) -> ApiError:
        message = f"GET {path}: {status} {_message(body)}".rstrip()
        if status == 410:
            return ExpiredError(message)
        if status == 401:
            with self._lock:
                self._client = None  # credentials are read again
        if status in (401, 403):
            return RefusedError(message)
        if status == 404:
            return AbsentError(message)
        return ApiError(message)


def _load_default(made: Any, api_server: str) -> None:
    try:
        config.load_incluster_config(client_configuration=made)
    except config.ConfigException:
        config.load_kube_config(client_configuration=made)
        return
    if api_server:
        _keep_address(made, api_server)


def _keep_address(made: Any, api_server: str) -> None:
    """Keeps the server's address: whenever the client reads the token again, it sets that anew, and its hook, too."""
    refresh = made.refresh_api_key_hook

    def refreshed(configuration: Any) -> None:
        refresh(configuration)
        configuration.host, configuration.refresh_api_key_hook = api_server, refreshed

    made.host, made.refresh_api_key_hook = api_server, refreshed


def _message(body: bytes) -> str:
    try:
        return decode_status(body).message
    except msgspec.MsgspecError:
        return body[:200].decode(errors="replace")
