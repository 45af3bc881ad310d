# SPDX-License-Identifier: Apache-2.0
"""The CNI server: the plugin kept warm, behind a UNIX socket that only root may talk to.

One thread for each call, so many at a time; calls for the same container wait for each other. It works without the API
server, and without the controller once that has left the node's pod range. Killing it loses nothing: the launcher runs
the one-shot process until it is back, and what it had half done is undone by the next call for the same container.
"""

import fcntl
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from bpf import node
from bpf.errors import BpfError
from bpf.settings import Settings
from cni import protocol, publish
from cni.errors import CniError, InputError, ServerError
from cni.plugin import Plugin, broken

SOCKET_NAME = "cni.sock"
REQUEST_TIMEOUT_S = 5.0
WORKERS_MAX = 64
# How soon the pod links follow when the controller has replaced the programs; the next call does so at once.
REATTACH_CHECK_S = 5.0
STOP_TIMEOUT_S = 30.0
# How soon the network configuration follows when pods can be started.
PUBLISH_CHECK_S = 0.25
# How long the flows of a pod that is gone may stay: its address is the last of the range to be given out again. And how
# soon a host port follows where a Service that had its place has gone.
SWEEP_S = 2.0

log = structlog.get_logger("cni")


class Server:
    """Serves until `stop` is called.

    Args:
        uid: the user that may call, root.
    """

    def __init__(self, settings: Settings, plugin: Plugin, uid: int = 0) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._network_file = settings.network_file
        self._conf_dir = settings.cni_conf_dir
        self._unready = ""
        self._unrestored = ""
        self._plugin = plugin
        self._uid = uid
        self._slots = threading.BoundedSemaphore(WORKERS_MAX)
        self._wake_reader, self._wake_writer = os.pipe()

    def stop(self) -> None:
        """Lets `serve` return; may be called from a signal handler."""
        os.write(self._wake_writer, b"x")

    def serve(self) -> None:
        """Accepts calls until stopped, then waits for those under way.

        Raises:
            ServerError: the socket cannot be made, or somebody has removed it, or another version has taken over; or as
                `_publish`.
        """
        lost = ""
        with _listening(self._run_dir / SOCKET_NAME) as listener:
            log.info("serving", socket=str(self._run_dir / SOCKET_NAME))
            threading.Thread(target=self._sweep, daemon=True).start()
            while True:
                sources: list[socket.socket | int] = [listener, self._wake_reader]
                ready, _, _ = select.select(sources, [], [], REATTACH_CHECK_S if self._publish() else PUBLISH_CHECK_S)
                if self._wake_reader in ready:
                    break
                if listener in ready:
                    self._accept(listener)
                self._follow_programs()
                if lost := self._lost():
                    break
        self._drain()
        self._delete_flows()
        if lost:
            raise ServerError(lost)

    def _lost(self) -> str:
        """Why this server is to end, and be started anew; or ""."""
        if not (self._run_dir / SOCKET_NAME).exists():
            return f"{self._run_dir / SOCKET_NAME} was removed, and what else stood there"
        return "another version has taken over" if node.other_layout_in_force(self._settings) else ""

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            log.warning("accept_failed", error=str(error))
            return
        self._slots.acquire()
        threading.Thread(target=self._work, args=(connection,), daemon=True).start()

    def _work(self, connection: socket.socket) -> None:
        try:
            with connection:
                if protocol.peer_uid(connection) != self._uid:
                    log.warning("caller_refused", uid=protocol.peer_uid(connection))
                    return
                self._answer(connection)
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> None:
        started = time.monotonic()
        try:
            call = protocol.receive(connection, REQUEST_TIMEOUT_S)
        except InputError as error:
            log.warning("request_refused", error=str(error))
            return
        try:
            answer = self._plugin.answer(call.variables, call.text, call.netns_fd)
        except Exception as error:  # a defect, which must neither end the server nor leave the caller without an answer
            log.exception("call_broke", **_keys(call))
            answer = broken(error, call.text)
        finally:
            if call.netns_fd is not None:
                os.close(call.netns_fd)
        keys = {**_keys(call), "ms": round((time.monotonic() - started) * 1000, 1)}
        try:
            connection.settimeout(REQUEST_TIMEOUT_S)
            protocol.answer(connection, answer.status, answer.output)
        except OSError as error:
            log.warning("caller_gone", **keys, error=str(error))
        if answer.failure:
            log.warning("call_failed", **keys, code=answer.failure.code, error=str(answer.failure))
        elif keys["verb"] == "VERSION":
            log.debug("call_done", **keys)  # probes ask it every few seconds
        else:
            log.info("call_done", **keys)

    def _follow_programs(self) -> None:
        """The controller may have pinned other programs."""
        if self._plugin.outdated():
            try:
                log.info("programs_replaced", links=self._plugin.reattach())
            except (CniError, BpfError) as error:
                log.error("reattach_failed", error=str(error))

    def _publish(self) -> bool:
        """Whether the runtime has the network configuration, if one is to be given to it.

        Raises:
            ServerError: its directory was removed. A container's mount stays with what was removed, where no file can
                be made; started anew it has the directory that there is then.
        """
        if self._network_file is None:
            return True
        try:
            network = self._network_file.read_bytes()
            self._plugin.require_ready(publish.plugin_text(network))
            if publish.publish(self._network_file.name, network, self._conf_dir):
                log.info("network_published", file=self._network_file.name)
            self._unready = ""
        except (OSError, CniError, BpfError) as error:
            if _is_removed(self._conf_dir):
                raise ServerError(f"{self._conf_dir} was removed") from error
            if str(error) != self._unready:
                log.warning("network_not_published", reason=str(error))
            self._unready = str(error)
        return not self._unready

    def _sweep(self) -> None:
        while True:
            self._restore_host_ports()
            time.sleep(SWEEP_S)
            self._delete_flows()

    def _delete_flows(self) -> None:
        try:
            deleted = self._plugin.delete_flows()
        except (OSError, BpfError) as error:
            log.error("flows_not_deleted", error=str(error))
            return
        if deleted:
            log.info("flows_deleted", entries=deleted)

    def _restore_host_ports(self) -> None:
        try:
            restored = self._plugin.restore_host_ports()
            self._unrestored = ""
        except (OSError, CniError, BpfError) as error:
            if str(error) != self._unrestored:
                log.error("host_ports_not_restored", error=str(error))
            self._unrestored = str(error)
            return
        if restored:
            log.info("host_ports_restored", count=restored)

    def _drain(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        free = sum(self._slots.acquire(timeout=max(deadline - time.monotonic(), 0)) for _ in range(WORKERS_MAX))
        log.info("stopped", abandoned=WORKERS_MAX - free)


def run(settings: Settings) -> None:
    """Loads the data plane if need be, gives it to the pod links that there are, and serves until SIGTERM or SIGINT.

    Raises:
        BpfError: the data plane cannot be loaded.
        ServerError: another server runs, or as `Server.serve`.
    """
    with _alone(settings.run_dir):
        loaded = node.load_datapath(settings, replace=False)
        plugin = Plugin(settings)
        log.info("datapath_ready", loaded=loaded, links=plugin.reattach())
        server = Server(settings, plugin)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        server.serve()


def _is_removed(directory: Path) -> bool:
    """Whether it is reached all the same, as by a mount, and has no name any longer."""
    try:
        return directory.stat().st_nlink == 0
    except OSError:
        return False


def _keys(call: protocol.Call) -> dict[str, str]:
    named = {"verb": "CNI_COMMAND", "container": "CNI_CONTAINERID", "ifname": "CNI_IFNAME"}
    return {key: call.variables.get(name, "") for key, name in named.items()}


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Keeps a second server from taking the socket, and any from starting while `calico-ebpf uninstall` takes things
    away. Raises ServerError."""
    path = run_dir / node.SERVER_LOCK
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(f"another cni-server runs, or uninstall: it holds {path}") from error
        yield


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket at `path`, put there when it is ready; callers never meet one that nobody listens to."""
    draft = path.with_suffix(".next")
    draft.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(draft))
            draft.chmod(0o600)
            listener.listen(socket.SOMAXCONN)
            draft.rename(path)
        except OSError as error:
            raise ServerError(f"{path}: cannot listen there: {error}") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
