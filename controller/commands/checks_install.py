# SPDX-License-Identifier: Apache-2.0
"""The checks of `calico-ebpf doctor` that look at what of ours is on the node: objects, pins, daemons, CNI files."""

import os
from collections.abc import Iterator

from bpf import bundle, node, syscall
from bpf.abi import MAPS
from bpf.errors import NotLoadedError
from bpf.loader import OBJECTS
from bpf.pins import Pins
from bpf.settings import Settings
from controller.commands import cnifiles, daemons, sizes
from controller.commands.checks import Check, Verdict, check


def install_checks(settings: Settings) -> Iterator[Check]:
    yield _objects(settings)
    yield from _pins(node.pins(settings))
    different = sizes.differences(settings)
    seen = "; ".join(different) or "as the settings say"
    yield check("map sizes", not different, seen, sizes.REMEDY, Verdict.WARN)
    for daemon in daemons.daemons(settings):
        yield check(daemon.name, daemon.up, daemon.seen, f"start `calico-ebpf {daemon.name}`", Verdict.WARN)
    errors = daemons.report(settings, "controller.json").get("errors", [])
    seen = f"{len(errors)}, the first: {errors[0]}" if errors else "the controller names none"
    yield check("problems", not errors, seen, "`calico-ebpf status` lists them", Verdict.WARN)
    yield from _cni(settings)


def _objects(settings: Settings) -> Check:
    absent = [name for name in OBJECTS if not (settings.objects_dir / name).is_file()]
    seen = f"{', '.join(absent)} missing in {settings.objects_dir}" if absent else str(settings.objects_dir)
    return check("objects", not absent, seen, _advice("`make build` makes them; or set objects_dir"))


def _pins(pins: Pins) -> Iterator[Check]:
    others = sorted(other.root.name for other in pins.others())
    seen = f"{pins.root.parent} also holds {', '.join(others)}" if others else f"none beside {pins.root}"
    yield check("other layouts", not others, seen, "another version left or uses them", Verdict.WARN)
    if not pins.programs.is_symlink():
        yield Check("pins", Verdict.WARN, f"nothing at {pins.programs}", "start the controller or the CNI server")
        return
    wrong = [name for name in MAPS if not _as_expected(pins, name)]
    seen = f"of another layout, or missing: {', '.join(wrong)}" if wrong else f"every map at {pins.maps}"
    yield check("pins", not wrong, seen, "`calico-ebpf uninstall` removes them; then start the daemons")


def _as_expected(pins: Pins, name: str) -> bool:
    try:
        with pins.opened_map(name) as fd:
            info, spec = syscall.map_info(fd), MAPS[name]
    except NotLoadedError:
        return False
    return (info.map_type, info.key_size, info.value_size) == (spec.map_type, spec.key_size, spec.value_size)


def _cni(settings: Settings) -> Iterator[Check]:
    executable = os.access(cnifiles.EXECUTABLE, os.X_OK)
    seen = str(cnifiles.EXECUTABLE) if executable else f"{cnifiles.EXECUTABLE} is missing or not executable"
    advice = _advice("install it from build/bin/calico-ebpf")
    yield check("cni executable", executable, seen, advice, Verdict.WARN)
    loopback = os.access(cnifiles.LOOPBACK, os.X_OK)
    missing = f"{cnifiles.LOOPBACK} is missing or not executable: containerd runs it for every pod"
    advice = _advice("link it from /usr/lib/cni, where Debian's containernetworking-plugins has it")
    yield check("cni loopback", loopback, str(cnifiles.LOOPBACK) if loopback else missing, advice, Verdict.WARN)
    files = cnifiles.networks(settings.cni_conf_dir)
    if not any(network.ours for network in files):
        seen = f"no network of ours in {settings.cni_conf_dir}"
        advice = (
            "the CNI server's log says why it has given none" if bundle.root() else "`hack/install` copies it there"
        )
        yield Check("cni network", Verdict.WARN, seen, advice)
    else:
        advice = "the runtime takes the first in the order of names: rename or remove it"
        yield check("cni network", files[0].ours, f"{files[0].path} is the first", advice, Verdict.WARN)


def _advice(checkout: str) -> str:
    """What to do about a part of the installation that is missing; what runs from a bundle has no checkout."""
    return "delete calico-ebpf's pod of this node: the next one installs it" if bundle.root() else checkout
