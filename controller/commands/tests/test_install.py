# SPDX-License-Identifier: Apache-2.0
"""A bundle put on a node: what lies there afterwards, again, and after an upgrade; and the settings that it gets."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import yaml

from bpf import files
from bpf.errors import SettingsError
from bpf.settings import Settings
from controller.commands import installed
from controller.commands.install import install, kubelet_server, settings_text
from controller.errors import InstallError

KUBELET = """
apiVersion: v1
kind: Config
clusters: [{name: one, cluster: {server: "https://192.0.2.1:6443"}}, {name: two, cluster: {server: "http://x"}}]
contexts: [{name: here, context: {cluster: %s, user: node}}]
current-context: here
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A node's root directory, with a kubelet's kubeconfig."""
    path = tmp_path / "host" / "etc" / "kubernetes" / "kubelet.conf"
    path.parent.mkdir(parents=True)
    path.write_text(KUBELET % "one")
    return tmp_path / "host"


def bundle(directory: Path, name: str) -> Path:
    """A bundle of nothing but names."""
    source = directory / name
    for file in ("bin/calico-ebpf", "bin/oneshot", "cni/calico-ebpf", "cni/loopback"):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(f"{file} of {name}")
    return source


def given(directory: Path, config: str) -> Path:
    """A ConfigMap's directory."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(config)
    (directory / "10-calico-ebpf.conflist").write_text("{}")
    return directory


def read(host: Path, path: str) -> str:
    """What the node finds at a path; links of its own lead into its root."""
    found = host / path.lstrip("/")
    while found.is_symlink():
        target = Path(os.readlink(found))
        found = host / target.relative_to("/") if target.is_absolute() else found.parent / target
    return (found.parent.resolve() / found.name).read_text()


def test_install_puts_everything_at_its_place(tmp_path: Path, host: Path) -> None:
    """The command line and the one-shot process by links, the runtime's executables as files, the settings."""
    told = list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", "handover: l2\n")], "n1"))
    assert "copied /usr/local/lib/calico-ebpf/bundle-1" in told
    assert read(host, "/usr/local/lib/calico-ebpf/oneshot") == "bin/oneshot of bundle-1"
    assert os.readlink(host / "usr/local/bin/calico-ebpf") == "/usr/local/lib/calico-ebpf/current/bin/calico-ebpf"
    assert read(host, "/opt/cni/bin/calico-ebpf") == "cni/calico-ebpf of bundle-1"
    assert read(host, "/opt/cni/bin/loopback") == "cni/loopback of bundle-1"
    assert read(host, "/etc/calico-ebpf/10-calico-ebpf.conflist") == "{}"
    settings = yaml.safe_load(read(host, "/etc/calico-ebpf/config.yaml"))
    assert settings == {"handover": "l2", "node_name": "n1", "api_server": "https://192.0.2.1:6443"}
    assert not (host / "etc/cni").exists()  # that is the CNI server's


def test_bundle_is_on_the_disk_before_its_name_is(tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there by that name is not copied again: half of it would stay for ever."""
    named: list[tuple[Path, list[str]]] = []
    library = host / "usr/local/lib/calico-ebpf"

    def sync(directory: Path) -> None:
        named.append((directory, [path.name for path in library.glob("bundle-*")]))

    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(os, "sync", lambda: pytest.fail("waits for every file system of the node"))
    list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", "")], "n1"))
    assert named == [(library, [])]


def test_install_again_copies_nothing(tmp_path: Path, host: Path) -> None:
    """A pod that is made anew finds its bundle there."""
    source, config = bundle(tmp_path, "bundle-1"), given(tmp_path / "given", "")
    list(install(host, source, [config], "n1"))
    assert not any(line.startswith("copied") for line in install(host, source, [config], "n1"))


def test_install_again_brings_back_a_bundle_that_was_wiped(tmp_path: Path, host: Path) -> None:
    """Its directory may have been left."""
    source, config = bundle(tmp_path, "bundle-1"), given(tmp_path / "given", "")
    list(install(host, source, [config], "n1"))
    shutil.rmtree(host / "usr/local/lib/calico-ebpf/bundle-1/bin")
    list(install(host, source, [config], "n1"))
    assert read(host, "/usr/local/lib/calico-ebpf/oneshot") == "bin/oneshot of bundle-1"


def test_install_of_another_version_keeps_the_one_before(tmp_path: Path, host: Path) -> None:
    """What runs from it has imports to come; what is older goes, and so does a copy that was cut short."""
    config, library = given(tmp_path / "given", ""), host / "usr/local/lib/calico-ebpf"
    for name in ("bundle-1", "bundle-2"):
        list(install(host, bundle(tmp_path, name), [config], "n1"))
    (library / ".new-killed").mkdir()
    list(install(host, bundle(tmp_path, "bundle-3"), [config], "n1"))
    assert sorted(path.name for path in library.glob("*bundle-*")) == ["bundle-2", "bundle-3"]
    assert not list(library.glob(".new-*"))
    assert read(host, "/usr/local/lib/calico-ebpf/oneshot") == "bin/oneshot of bundle-3"
    assert read(host, "/opt/cni/bin/calico-ebpf") == "cni/calico-ebpf of bundle-3"


def test_install_leaves_what_is_not_ours(tmp_path: Path, host: Path) -> None:
    """Another loopback plugin, and settings that the operator wrote."""
    for path, text in (("opt/cni/bin/loopback", "theirs"), ("etc/calico-ebpf/config.yaml", "flows_max: 1024\n")):
        (host / path).parent.mkdir(parents=True)
        (host / path).write_text(text)
    told = list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", "")], "n1"))
    assert "left /etc/calico-ebpf/config.yaml, which somebody else has written" in told
    assert read(host, "/opt/cni/bin/loopback") == "theirs"
    assert read(host, "/etc/calico-ebpf/config.yaml") == "flows_max: 1024\n"
    assert not (host / installed.PLACED.relative_to("/")).exists()


def test_install_renews_its_own_loopback(tmp_path: Path, host: Path) -> None:
    """Each version brings its own, also where one was killed between its note and the file."""
    config, path = given(tmp_path / "given", ""), host / "opt/cni/bin/loopback"
    for name in ("bundle-1", "bundle-2"):
        assert "wrote /opt/cni/bin/loopback" in list(install(host, bundle(tmp_path, name), [config], "n1"))
        assert path.read_text() == f"cni/loopback of {name}"
    path.write_text("cni/loopback of bundle-1")
    list(install(host, bundle(tmp_path, "bundle-3"), [config], "n1"))
    assert path.read_text() == "cni/loopback of bundle-3"


def test_install_takes_a_note_without_a_digest_for_its_own_once(tmp_path: Path, host: Path) -> None:
    """As the first bundles wrote them."""
    config, path = given(tmp_path / "given", ""), host / "opt/cni/bin/loopback"
    list(install(host, bundle(tmp_path, "bundle-1"), [config], "n1"))
    (host / installed.PLACED.relative_to("/")).write_text("/opt/cni/bin/loopback\n")
    list(install(host, bundle(tmp_path, "bundle-2"), [config], "n1"))
    assert path.read_text() == "cni/loopback of bundle-2"
    path.write_text("theirs")
    list(install(host, bundle(tmp_path, "bundle-3"), [config], "n1"))
    assert path.read_text() == "theirs"


def test_install_leaves_a_loopback_that_came_in_place_of_its_own(tmp_path: Path, host: Path) -> None:
    """Somebody has installed a package of plugins since."""
    config, path = given(tmp_path / "given", ""), host / "opt/cni/bin/loopback"
    list(install(host, bundle(tmp_path, "bundle-1"), [config], "n1"))
    path.write_text("theirs")
    list(install(host, bundle(tmp_path, "bundle-2"), [config], "n1"))
    assert path.read_text() == "theirs"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", {"node_name": "n1", "api_server": "https://a"}),
        ("# nothing\n", {"node_name": "n1", "api_server": "https://a"}),
        ("api_server: https://b", {"node_name": "n1", "api_server": "https://b"}),
        ("kubeconfig: /k\nnode_name: n2\n", {"node_name": "n2", "kubeconfig": "/k"}),
    ],
)
def test_settings_given_come_before_those_found(config: str, expected: dict[str, str]) -> None:
    """What the node knows is added where nobody has said it."""
    assert yaml.safe_load(settings_text([config], "n1", "https://a")) == expected


def test_settings_of_the_operator_come_before_the_manifests() -> None:
    """In whichever form they are written: an upgrade brings the manifest's again, and changes nothing of theirs."""
    texts = ["# defaults\nhandover: auto\nflows_max: 1024\n...\n", "{handover: l2}"]
    assert yaml.safe_load(settings_text(texts, "n1", "")) == {"handover": "l2", "flows_max": "1024", "node_name": "n1"}


def test_settings_stay_what_was_written(tmp_path: Path) -> None:
    """YAML's idea that `off` is false is not ours, nor that a port is a number in base 60."""
    path = tmp_path / "config.yaml"
    given = "masquerade: off\nmetrics_address: ''\nunderlay_devices: [eth0, on]\nflows_max: 0100\n"
    path.write_text(settings_text([given], "n1", ""))
    ours, theirs = Settings.load({}, {}, path), tmp_path / "given.yaml"
    theirs.write_text(given)
    assert ours == dataclasses.replace(Settings.load({}, {}, theirs), node_name="n1")


def test_network_of_the_operator_comes_before_the_manifests(tmp_path: Path, host: Path) -> None:
    """As one that keeps the name of another plugin's network."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "10-calico-ebpf.conflist").write_text('{"name": "cbr0"}')
    list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", ""), own], "n1"))
    assert read(host, "/etc/calico-ebpf/10-calico-ebpf.conflist") == '{"name": "cbr0"}'


def test_wrong_setting_is_named_where_it_stands(tmp_path: Path, host: Path) -> None:
    """In the operator's own file, not in what is made of all."""
    own = given(tmp_path / "own", "handover: l2\nflow_max: 100\n")
    with pytest.raises(SettingsError, match=r"own/config\.yaml:2: unknown setting 'flow_max'"):
        list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", ""), own], "n1"))


def test_file_that_nobody_looks_at_is_refused(tmp_path: Path, host: Path) -> None:
    """It says something, and would change nothing. What kubelet keeps beside a ConfigMap's files is its own."""
    own = given(tmp_path / "own", "")
    (own / "..data").mkdir()
    (own / "config.yml").write_text("handover: l2\n")
    with pytest.raises(InstallError, match=r"own: nobody looks at config\.yml, but at config\.yaml and 10-"):
        list(install(host, bundle(tmp_path, "bundle-1"), [own], "n1"))


@pytest.mark.parametrize("config", ["- a\n", "a: [", "7"])
def test_settings_that_make_no_sense_are_refused(config: str) -> None:
    """Before they replace a node's good ones."""
    with pytest.raises(InstallError):
        settings_text([config], "n1", "")


@pytest.mark.parametrize("config", ["no_such: 1", "flows_max: many", "handover: pigeon"])
def test_settings_that_the_daemons_would_refuse_are_refused(tmp_path: Path, host: Path, config: str) -> None:
    """The node goes on with those that it has."""
    (host / "etc/calico-ebpf").mkdir()
    (host / "etc/calico-ebpf/config.yaml").write_text(f"{installed.HEADER}\n")
    with pytest.raises(SettingsError):
        list(install(host, bundle(tmp_path, "bundle-1"), [given(tmp_path / "given", config)], "n1"))
    assert read(host, "/etc/calico-ebpf/config.yaml") == f"{installed.HEADER}\n"
    assert not (host / "usr").exists()


@pytest.mark.parametrize("text", ["", "nonsense", "[", KUBELET % "two", KUBELET % "three"])
def test_kubelet_without_a_server_names_none(tmp_path: Path, text: str) -> None:
    """Absent, malformed, or not by TLS: the address is then Kubernetes' own."""
    path = tmp_path / "kubelet.conf"
    assert kubelet_server(path) == ""
    path.write_text(text)
    assert kubelet_server(path) == ""
