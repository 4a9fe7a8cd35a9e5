"""Whose program is at the other end of a connection on this machine."""

import socket
import sys
from pathlib import Path

__all__ = ["peer_uid"]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""A program may reach 127.0.0.1 by IPv6 too, as ::ffff:127.0.0.1."""
_LOCAL, _REMOTE, _UID = 1, 2, 7
"""Columns of the tables: address of the socket, address of its peer, user id of who made it."""
_NOBODY = -1


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id of who opened a loopback IPv4 connection to us, -1 where it is in no table.

    Returns:
        None where the system has no such tables (it is not Linux).
    """
    theirs, ours = _in_table(connection.getpeername()), _in_table(connection.getsockname())
    tables = [table for table in _TABLES if table.exists()]
    for table in tables:
        for line in table.read_text().splitlines():
            fields = line.split()
            if fields[_LOCAL].endswith(theirs) and fields[_REMOTE].endswith(ours):
                return int(fields[_UID])
    return _NOBODY if tables else None


def _in_table(address: tuple[str, int]) -> str:
    """Write 127.0.0.1:80 as the tables do, 0100007F:0050 where the machine is little-endian."""
    host, port = address
    number = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{number:08X}:{port:04X}"
