# SPDX-License-Identifier: Apache-2.0
"""Records survive a killed process, and the lock keeps two from one container."""

import subprocess
import sys
import threading
from pathlib import Path

from cni.portmap import PortMapping
from cni.records import Record, Records

MAPPINGS = (PortMapping("", 8053, "udp", 53), PortMapping("192.0.2.1", 8080, "tcp", 80))
RECORD = Record("c1", "eth0", "pods", "shop/web-0", ("192.0.2.2",), complete=True, port_mappings=MAPPINGS)

HOLD = "import sys; from pathlib import Path; from cni.records import Records\n"
HOLD += "with Records(Path(sys.argv[1])).locked('c1'): print('held', flush=True); sys.stdin.read()"


def test_record_written_is_read_back(tmp_path: Path) -> None:
    """What was written is what is read, and it is listed."""
    records = Records(tmp_path)
    with records.locked("c1"):
        records.write("ce1", RECORD)
    assert records.read("ce1") == RECORD
    assert records.links() == ["ce1"]
    records.remove("ce1")
    records.remove("ce1")
    assert records.read("ce1") is None
    assert records.links() == []


def test_record_of_an_earlier_version_tells_of_no_host_ports(tmp_path: Path) -> None:
    """Its pod goes on as it was."""
    records = Records(tmp_path)
    with records.locked("c1"):
        fields = '"container_id": "c1", "ifname": "eth0", "network": "pods", "pod": "shop/web-0"'
        (tmp_path / "state/links/ce1").write_text(f'{{{fields}, "addresses": ["192.0.2.2"], "complete": true}}')
    assert records.read("ce1") == RECORD._replace(port_mappings=())


def test_record_that_is_damaged_counts_as_incomplete(tmp_path: Path) -> None:
    """The next ADD then clears away what it may have told of."""
    records = Records(tmp_path)
    with records.locked("c1"):
        records.write("ce1", RECORD)
    for damage in ("", "{}", "[]", '{"container_id": 1'):
        (tmp_path / "state/links/ce1").write_text(damage)
        assert records.read("ce1") == Record("", "", "", "")


def test_lock_keeps_another_process_from_the_same_container_only(tmp_path: Path) -> None:
    """The one-shot process waits for the server, but only where it must, and a killed holder holds nothing."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with Records(tmp_path).locked("c2"):
            pass
        got = threading.Event()

        def take() -> None:
            with Records(tmp_path).locked("c1"):
                got.set()

        waiter = threading.Thread(target=take)
        waiter.start()
        assert not got.wait(0.2)
        holder.kill()
        assert got.wait(10)
        waiter.join()
