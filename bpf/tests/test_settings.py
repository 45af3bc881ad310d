# SPDX-License-Identifier: Apache-2.0
"""Where settings come from, which of them wins, and how wrong ones are named."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bpf.errors import SettingsError
from bpf.settings import Settings, describe, reference

ABSENT = Path("/nonexistent/config.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_load_without_anything_gives_defaults() -> None:
    """Nothing given is every default, and says so."""
    settings = Settings.load({}, {}, ABSENT)
    assert settings == Settings()
    assert settings.bpffs == Path("/sys/fs/bpf")
    assert {settings.origin(setting.name) for setting in describe()} == {"default"}


def test_load_takes_the_host_name_as_kubelet_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which registers its Node in lower case."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="Node-1.Example"))
    assert Settings.load({}, {}, ABSENT).node_name == "node-1.example"


@pytest.mark.parametrize(
    ("flags", "environ", "value", "origin"),
    [
        ({"flows_max": "1000"}, {"CALICO_EBPF_FLOWS_MAX": "2000"}, 1000, "--flows-max"),
        ({"flows_max": None}, {"CALICO_EBPF_FLOWS_MAX": "2000"}, 2000, "CALICO_EBPF_FLOWS_MAX"),
        ({}, {}, 3000, "{file}:2"),
    ],
)
def test_load_takes_flag_over_variable_over_file(
    file: Path, flags: dict[str, object], environ: dict[str, str], value: int, origin: str
) -> None:
    """The nearest origin wins, and is the one that is told."""
    file.write_text("# sizes\nflows_max: 3000\n")
    settings = Settings.load(flags, environ, file)
    assert settings.flows_max == value
    assert settings.origin("flows_max") == origin.format(file=file)


def test_load_reads_each_type_from_each_origin(file: Path) -> None:
    """Texts, numbers, paths and lists mean the same in a file, a variable and a flag."""
    file.write_text("underlay_devices: [eth0, bond1.7]\nstate_dir: /srv/state\nlog_level: debug\n")
    settings = Settings.load({"run_dir": Path("/srv/run"), "pods_max": 64}, {"CALICO_EBPF_CGROUP": "/cgroup"}, file)
    assert settings.underlay_devices == ("eth0", "bond1.7")
    assert (settings.state_dir, settings.run_dir, settings.cgroup) == tuple(
        map(Path, ("/srv/state", "/srv/run", "/cgroup"))
    )
    assert (settings.pods_max, settings.log_level) == (64, "debug")
    assert Settings.load({}, {"CALICO_EBPF_UNDERLAY_DEVICES": "eth0, eth1"}, ABSENT).underlay_devices == (
        "eth0",
        "eth1",
    )


def test_load_takes_yaml_words_as_they_stand(file: Path) -> None:
    """`off` is the word that it is, not YAML's false; digits are a name where a name is wanted."""
    file.write_text("connect_time: off\nnode_name: 0123\n")
    settings = Settings.load({}, {}, file)
    assert (settings.connect_time, settings.node_name) == ("off", "0123")


def test_load_takes_node_name_of_kubernetes_unless_ours_is_set() -> None:
    """A DaemonSet sets NODE_NAME; our own variable is nearer."""
    assert Settings.load({}, {"NODE_NAME": "worker-1"}, ABSENT).node_name == "worker-1"
    both = {"NODE_NAME": "worker-1", "CALICO_EBPF_NODE_NAME": "worker-2"}
    assert Settings.load({}, both, ABSENT).node_name == "worker-2"


def test_load_ignores_variables_that_are_no_settings() -> None:
    """Kubernetes sets variables for every Service, one named calico-ebpf included."""
    environ = {"CALICO_EBPF_SERVICE_HOST": "10.96.0.1", "CALICO_EBPF_ONESHOT": "/x", "PATH": "/bin"}
    assert Settings.load({}, environ, ABSENT) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_load_of_empty_file_gives_defaults(file: Path, text: str) -> None:
    """A file may say nothing."""
    file.write_text(text)
    assert Settings.load({}, {}, file) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flows_max: 100\nflow_max: 100\n", r":2: unknown setting 'flow_max'"),
        ("flows_max: 100\nflows_max: 200\n", r":2: flows_max is set twice"),
        ("\n\nflows_max: many\n", r":3: flows_max: expected a whole number .*, not 'many'"),
        ("flows_max: 1.5\n", r":1: flows_max: expected a whole number"),
        ("flows_max: -5\n", r":1: flows_max: expected a whole number from 16 to"),
        ("flows_max: 3\n", r":1: flows_max: expected a whole number from 16 to"),
        ("tcp_new_s: 0\n", r":1: tcp_new_s: expected a whole number from 1 to \d+ s"),
        ("overlay_port: 65536\n", r":1: overlay_port: expected"),
        ("flows_max:\n", r":1: flows_max: no value"),
        ("flows_max: {a: 1}\n", r":1: flows_max: expected a value or a list"),
        ("underlay_devices: [[eth0]]\n", r":1: underlay_devices: expected a value or a list"),
        ("service_cidrs: [10.96.0.0/16, 10.96.0.1/16]\n", r":1: service_cidrs: 10.96.0.1/16 has host bits set"),
        ("non_masquerade_cidrs: [10.0.0.1/8]\n", r":1: non_masquerade_cidrs: 10.0.0.1/8 has host bits set"),
        (
            f"non_masquerade_cidrs: [{', '.join(['10.0.0.0/8'] * 1025)}]\n",
            r":1: non_masquerade_cidrs: expected at most 1024 ranges",
        ),
        (
            f"non_masquerade_cidrs: ['::/0', {', '.join(['10.0.0.0/8'] * 929)}]\n",
            r":1: non_masquerade_cidrs: expected at most 1024 ranges, where ::/0 counts as 96",
        ),
        (
            "masquerade: all\nnon_masquerade_cidrs: ['::ffff:10.0.0.0/104']\n",
            r":2: non_masquerade_cidrs: ::ffff:10.0.0.0/104 is IPv4 in the form of IPv6: write 10.0.0.0/8,",
        ),
        ("service_cidrs: ['::ffff:0:0/96']\n", r":1: service_cidrs: ::ffff:0:0/96 is IPv4 in the form of IPv6"),
        ("node_port_addresses: ['::ffff:0:0/96']\n", r":1: node_port_addresses: ::ffff:0:0/96 is IPv4 in the form"),
        ("encapsulation: sometimes\n", r":1: encapsulation: expected one of auto, never, always, not 'sometimes'"),
        ("run_dir: run\n", r":1: run_dir: expected an absolute path"),
        ("run_dir: ''\n", r":1: run_dir: expected an absolute path"),
        ("source: ''\n", r":1: source: expected a value"),
        ("health_address: 10256\n", r":1: health_address: expected ADDRESS:PORT"),
        ("health_address: 0.0.0.0:99999\n", r":1: health_address: expected ADDRESS:PORT"),
        ("- flows_max\n", r":1: expected a mapping"),
        ("flows_max: [1\n", r"line 2"),
        ("? [a]\n: 1\n", r":1: unknown setting"),
        ("log_level: info\nmasquerade_port_min: 50000\n", r":2: masquerade_port_min: the last port would be 69999"),
        ("masquerade_port_min: 60000\nmasquerade_ports: 5537\n", r":2: masquerade_ports: the last port would be 65536"),
    ],
)
def test_load_of_wrong_file_names_file_and_line(file: Path, text: str, message: str) -> None:
    """Each mistake is told with where it stands and what was expected."""
    file.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        Settings.load({}, {}, file)
    assert str(file) in str(caught.value)


def test_load_of_unreadable_file_names_it(tmp_path: Path) -> None:
    """A directory in the file's place is no reason to go on with defaults."""
    with pytest.raises(SettingsError, match=str(tmp_path)):
        Settings.load({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"flows_max": "x"}, {}, r"^--flows-max: flows_max: expected a whole number"),
        ({}, {"CALICO_EBPF_FLOWS_MAX": ""}, r"^CALICO_EBPF_FLOWS_MAX: flows_max: expected a whole number"),
        ({"flow_max": "1"}, {}, r"flow_max.*unknown setting"),
    ],
)
def test_load_of_wrong_flag_or_variable_names_it(
    flags: dict[str, object], environ: dict[str, str], message: str
) -> None:
    """A mistake on the command line or in the environment is told by the flag's or variable's name."""
    with pytest.raises(SettingsError, match=message):
        Settings.load(flags, environ, ABSENT)


@pytest.mark.parametrize("name", ["health_address", "metrics_address", "cgroup", "kubeconfig", "underlay_devices"])
def test_load_of_empty_value_where_one_means_something(name: str) -> None:
    """An empty value is allowed where the reference page says what it means."""
    assert not getattr(Settings.load({name: ""}, {}, ABSENT), name)


def test_load_takes_ranges_of_everything() -> None:
    """And as many ranges as the map has room for."""
    many = ["::/0", *(f"10.0.{index // 256}.{index % 256}/32" for index in range(1024 - 96))]
    assert Settings.load({"non_masquerade_cidrs": many}, {}, ABSENT).non_masquerade_cidrs == tuple(many)
    assert Settings.load({"service_cidrs": "0.0.0.0/0, ::/0"}, {}, ABSENT).service_cidrs == ("0.0.0.0/0", "::/0")


def test_defaults_pass_their_own_checks() -> None:
    """Every default, given as a value, is accepted and is the same."""
    for setting in describe():
        default = getattr(Settings(), setting.name)
        assert getattr(Settings.load({setting.name: default}, {}, ABSENT), setting.name) == default, setting.name


def test_sample_file_holds_defaults() -> None:
    """conf/base/config.yaml is accepted, and changes nothing."""
    assert Settings.load({}, {}, Path(__file__).parents[2] / "conf" / "base" / "config.yaml") == Settings()


def test_overlay_of_both_families_says_the_defaults() -> None:
    """It must be safe for every cluster of both families, also one whose IPv6 addresses mean nothing outside."""
    overlay = Path(__file__).parents[2] / "conf/overlays/dual-stack/config.yaml"
    assert Settings.load({}, {}, overlay) == Settings()


def test_reference_describes_every_setting() -> None:
    """No field of Settings is without meaning, reason and place on the page."""
    page = reference()
    names = [item.name for item in dataclasses.fields(Settings) if not item.name.startswith("_")]
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == names
    assert all(setting.meta.meaning and setting.meta.why for setting in describe())


def test_load_without_file_does_not_import_yaml() -> None:
    """The CNI plugin loads settings for every pod: a node without a file pays nothing for YAML."""
    script = (
        "import sys; from pathlib import Path; from bpf.settings import Settings; "
        f"Settings.load({{}}, {{}}, Path({str(ABSENT)!r})); print('yaml' in sys.modules, 'click' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
