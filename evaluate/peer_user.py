"""Whose program is at the other end of a connection on this machine."""

import socket
import sys
from pathlib import Path

__all__ = ["peer_uid"]

_TABLE = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _UID = 1, 2, 7
"""Columns of the table: address of the socket, address of its peer, user id of who made it."""


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id of who opened a loopback IPv4 connection to us, None where the system does not tell (not Linux)."""
    theirs, ours = _in_table(connection.getpeername()), _in_table(connection.getsockname())
    try:
        lines = _TABLE.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if fields[_LOCAL] == theirs and fields[_REMOTE] == ours:
            return int(fields[_UID])
    return None


def _in_table(address: tuple[str, int]) -> str:
    """Write 127.0.0.1:80 as the table does, 0100007F:0050 where the machine is little-endian."""
    host, port = address
    number = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{number:08X}:{port:04X}"
