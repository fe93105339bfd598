"""What ranks say to each other: one JSON object a line, over a socket."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

Message = dict[str, Any]

_SEND_LIMIT_S = 5.0
_BYTES_AT_ONCE = 1 << 16
_LONGEST_LINE_BYTES = 1 << 20


class Line:
    """One end of a connection.

    Args:
        connection: A connected socket, which belongs to this object from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that is switched off closes nothing; after a minute without an answer it counts
        # as gone. Linux's names; elsewhere the system's own, longer times hold.
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_SEND_LIMIT_S)

    def send(self, message: Message) -> None:
        """Send a message; one to a rank that is gone is lost."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """What has come since the last call; to be called when the socket is ready to be read.

        Returns:
            Whole messages, none perhaps; None where the other end is closed.
        """
        try:
            content = self.socket.recv(_BYTES_AT_ONCE)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not content or len(self._rest) > _LONGEST_LINE_BYTES:
            return None
        *lines, self._rest = (self._rest + content).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.socket.close()
