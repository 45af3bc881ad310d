# SPDX-License-Identifier: Apache-2.0
"""Results and errors of the specification. Pure.

Held in the form of 1.0.0 and rendered in the version asked for: 0.3.0 to 0.4.0 also say each address's family.
"""

from ipaddress import ip_interface
from typing import Any, NamedTuple

from cni.config import VERSIONS, Json
from cni.errors import CniError, ConfigError

# Versions in which each address carries "version": "4" or "6".
_WITH_FAMILY = ("0.3.0", "0.3.1", "0.4.0")


class Result(NamedTuple):
    """Each list holds the specification's objects; `interface` of an address is an index into `interfaces`."""

    interfaces: list[Json]
    ips: list[Json]
    routes: list[Json]
    dns: Json


def parse(data: object) -> Result:
    """Reads a result of any version.

    Raises:
        ConfigError: it is not of the specification's form.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"a result must be an object, not {data!r}")
    interfaces, ips, routes = (_objects(data, name) for name in ("interfaces", "ips", "routes"))
    for ip in ips:
        try:
            ip_interface(str(ip["address"]))
        except (ValueError, LookupError) as error:
            raise ConfigError(f"ips of a result: {ip!r} is not an address") from error
    return Result(interfaces, [_without(ip, "version") for ip in ips], routes, data.get("dns") or {})


def render(result: Result, version: str) -> Json:
    """The result as the runtime reads it."""
    ips = result.ips
    if version in _WITH_FAMILY:
        ips = [{"version": "6" if ":" in ip["address"] else "4", **ip} for ip in ips]
    rendered: Json = {"cniVersion": version, "interfaces": result.interfaces, "ips": ips}
    return {**rendered, "routes": result.routes, "dns": result.dns}


def chained(before: Result, ours: Result) -> Result:
    """What another plugin made before us, followed by what we made."""
    shift = len(before.interfaces)
    ips = [{**ip, "interface": ip["interface"] + shift} for ip in ours.ips]
    return Result(
        before.interfaces + ours.interfaces, before.ips + ips, before.routes + ours.routes, ours.dns or before.dns
    )


def error(failure: CniError, version: str) -> Json:
    rendered: Json = {"cniVersion": version, "code": failure.code, "msg": str(failure)}
    return {**rendered, "details": failure.details} if failure.details else rendered


def versions(version: str) -> Json:
    """The answer to VERSION."""
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def _objects(data: Json, name: str) -> list[Json]:
    items: Any = [] if data.get(name) is None else data[name]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{name} of a result: expected a list of objects, not {items!r}")
    return items


def _without(item: Json, key: str) -> Json:
    return {name: value for name, value in item.items() if name != key}
