"""A websocket server on loopback that sends the same recorded frames to each client, as fast as the client reads them.

It is a process of its own, so none of its work is counted as a client's, and it does as little as it can: the frames of
a run are one block of bytes, made before the first client comes.

A client names its streams in the URL or subscribes to them afterwards; the flood begins once all of them are asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from pathlib import Path

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def framed(payload: bytes) -> bytes:
    """Returns a whole unmasked text message."""
    size = len(payload)
    head = bytes([0x81, size]) if size < 126 else struct.pack("!BBH", 0x81, 126, size)
    return head + payload


def serve(listener: socket.socket, flood: bytes, streams: int) -> None:
    """Serves each connection in a thread, until the process ends."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_connection, args=(connection, flood, streams), daemon=True).start()


def _connection(connection: socket.socket, flood: bytes, streams: int) -> None:
    with connection, connection.makefile("rb") as received:
        try:
            request = b"".join(iter(received.readline, b"\r\n")).decode()
            asked = request.partition("\r\n")[0].count("@kline")
            connection.sendall(_handshake(request))
            while asked < streams:
                message = json.loads(_message(received))
                asked += sum("@kline" in stream for stream in message["params"])
                connection.sendall(framed(json.dumps({"result": None, "id": message["id"]}).encode()))
            connection.sendall(flood)
            while received.read(1):
                pass
        except OSError:
            # The client has measured enough and is gone.
            return


def _handshake(request: str) -> bytes:
    key = re.search(r"(?im)^sec-websocket-key: *(\S+)", request)
    assert key is not None, request
    accept = base64.b64encode(hashlib.sha1((key[1] + _GUID).encode()).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def _message(received: object) -> bytes:
    """Returns the next text message of the client; skips control frames."""
    while True:
        opcode, size = received.read(2)
        size &= 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", received.read(2))
        mask = received.read(4)
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(received.read(size)))
        if opcode & 0x0F == 1:
            return body


def main() -> None:
    """Usage: server.py FRAMES STREAMS, where FRAMES is a file with one frame a line. Prints the port."""
    frames = Path(sys.argv[1]).read_bytes().splitlines()
    flood = b"".join(framed(frame) for frame in frames)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    serve(listener, flood, int(sys.argv[2]))


if __name__ == "__main__":
    main()
