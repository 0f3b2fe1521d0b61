"""The embedded MQTT 5 broker: a child process on loopback that lives exactly as long as its block.

It always gets its own configuration: iotcore's defaults listen on every interface, support MQTT 3.1.1 only
and cut payloads at 20 KiB. Retained messages are kept in memory and are lost when it ends.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from stream.errors import RefusedError
from stream.extras import installing, missing
from stream.web import bind

MAX_PAYLOAD_BYTES = 1_048_576

_CONFIG = """id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload_bytes}
max_inflight_count = 100
dynamic_filters = true
"""

# The child ends when its stdin closes, so it cannot outlive a parent that was killed.
_CHILD = """
import logging, os, sys, threading
from iotcore import IotCoreBroker
from stream.extras import installing, missing
logging.disable(logging.CRITICAL)
def leave():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
IotCoreBroker(config_path=sys.argv[1]).run_forever()
"""


class BrokerError(RefusedError):
    """The embedded broker cannot run; the message is one line for people."""


class EmbeddedBroker:
    """Runs within `with EmbeddedBroker() as broker:`; clients connect to `broker.url`, MQTT 5 only.

    Entering and leaving block for some 0.2 s: do both outside the event loop or in a thread.
    """

    def __init__(self, port: int = 0, start_timeout_s: float = 10.0) -> None:
        self._wanted_port = port
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns once the broker accepts connections. Raises `PortInUseError` or `BrokerError` otherwise."""
        if self.is_running:
            return
        if missing(["iotcore"]):
            raise BrokerError(f"the embedded broker needs iotcore: {installing('demo')}")
        # The broker binds by itself; this finds a free port, or the error for a taken one.
        with bind("127.0.0.1", self._wanted_port) as probe:
            self.port = int(probe.getsockname()[1])
        with tempfile.TemporaryDirectory(prefix="volcast-broker-") as folder:
            config = Path(folder) / "broker.toml"
            config.write_text(_CONFIG.format(port=self.port, max_payload_bytes=MAX_PAYLOAD_BYTES))
            self._process = subprocess.Popen(
                # -P: a folder named iotcore in the working directory must not be imported.
                [sys.executable, "-P", "-c", _CHILD, str(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in a terminal goes to the whole group: the broker must still be there when
                # the daemon publishes its last message.
                start_new_session=True,
            )
            try:
                self._await_listener()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends the broker and frees its port; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        # It has nothing to save, so there is nothing to wait for.
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _await_listener(self) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline_s:
            if not self.is_running:
                raise BrokerError("the embedded broker ended while it started")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BrokerError(f"the embedded broker did not listen on port {self.port} in {self._start_timeout_s} s")

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
