"""The server of the slide browser: loopback only, one key a session, nothing but GET.

Whoever can open a port on this machine can try to talk to it: other users, and every page in the user's own browser. So the
address holds a secret, requests under another host name (DNS rebinding) or from another site's page are refused, and what it
serves cannot be framed, embedded or kept in the browser's cache.
"""

import logging
import os
import secrets
import select
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from simtriplet.evaluate.peer_user import peer_uid
from simtriplet.evaluate.slide_browser_routes import Answer, answer, failure
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.wsi.errors import SettingsError

__all__ = ["BrowserServer"]

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_IDLE_S = 60.0
_VIEWER_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""The one style element that OpenSeadragon adds to the page."""

_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_VIEWER_STYLE}; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OWN_SITE = ("same-origin", "none")
"""What a browser says of a request by the page itself, and of an address that the user opened."""


class BrowserServer(ThreadingHTTPServer):
    """Serve the slide browser on 127.0.0.1.

    Args:
        slides: what is looked at.
        port: 0 takes a free one.

    Raises:
        SettingsError: if the port cannot be had.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # the parent's 5 lets a browser that pans quickly wait a second for its next connection

    def __init__(self, slides: BrowsedSlides, *, port: int = 0) -> None:
        self.slides = slides
        self.key = secrets.token_urlsafe(16)
        self._once: str | None = None
        self._once_lock = threading.Lock()
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            said = error.strerror or error
            raise SettingsError(f"port {port}: cannot be had ({said}); choose another --port, or none") from error

    @property
    def address(self) -> str:
        """What to open in a web browser."""
        return f"http://{_LOOPBACK}:{self.server_port}/{self.key}/"

    def address_once(self) -> str:
        """Return an address that leads to the page once.

        For the command line of a web browser, which every user of the machine can read while it runs: another user who is
        quicker than the web browser is told nothing, and uses nothing up.
        """
        self._once = secrets.token_urlsafe(16)
        return f"http://{_LOOPBACK}:{self.server_port}/{self._once}/"

    def redeem(self, key: str) -> bool:
        """Tell whether a key is that of `address_once`, which from then on leads nowhere."""
        with self._once_lock:
            fits = self._once is not None and secrets.compare_digest(key.encode(), self._once.encode())
            if fits:
                self._once = None
            return fits

    @property
    def hosts(self) -> tuple[str, str]:
        """The names under which a browser may call."""
        return f"{_LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}"

    def server_bind(self) -> None:
        """Bind without asking a name server for the machine's name, as the parent class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _LOOPBACK, self.server_address[1]

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """A browser that went away is no error; anything else is a bug, and the log says where."""
        if isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.debug("connection from %s ended early", client_address)
        else:
            log.exception("a request failed")


_OTHER_METHODS = ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")


class _Handler(BaseHTTPRequestHandler):
    server: BrowserServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "simtriplet", ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._send(self._answer())

    def _answer(self) -> Answer:
        if self.headers.get("Host") not in self.server.hosts or len(self.headers.get_all("Host", [])) != 1:
            return failure("wrong Host; open the address that the program printed", HTTPStatus.FORBIDDEN)
        if self.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE:
            return failure("asked by another site's page", HTTPStatus.FORBIDDEN)
        try:
            asked = urlsplit(self.path)
        except ValueError:
            return failure("no such address", HTTPStatus.NOT_FOUND)
        key, slash, path = asked.path.removeprefix("/").partition("/")
        if slash and not path and self._is_own_user() and self.server.redeem(key):
            return Answer(HTTPStatus.SEE_OTHER, "text/plain; charset=utf-8", b"")
        if not slash or not secrets.compare_digest(key.encode(), self.server.key.encode()):
            return failure("open the address that the program printed, with its key", HTTPStatus.NOT_FOUND)
        return answer(self.server.slides, path, asked.query, is_wanted=self._is_there)

    def _is_own_user(self) -> bool:
        """Tell whether the program that asks is of who runs this one, or of root, as far as the system says."""
        return peer_uid(self.connection) in (None, 0, os.getuid())

    def _is_there(self) -> bool:
        """Tell whether somebody still waits for the answer: a page that has moved on closes the connection.

        One whose sending side alone is closed counts as gone. A web browser never does that, and it is all that arrives here of
        a page that has gone at the other end of `ssh -L`.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return not poll.poll(0) or len(self.connection.recv(1, socket.MSG_PEEK)) > 0

    def _refuse(self) -> None:
        self.close_connection = True  # a body, if there is one, is not read
        self._send(failure("only GET", HTTPStatus.METHOD_NOT_ALLOWED))

    def _send(self, found: Answer) -> None:
        self.send_response(found.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", found.kind)
        self.send_header("Content-Length", str(len(found.body)))
        if found.status == HTTPStatus.SEE_OTHER:
            self.send_header("Location", f"/{self.server.key}/")
        if found.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the parent's name)
        """Keep quiet unless debugging; the key stays out of the log."""
        log.debug("%s", (format % args).replace(self.server.key, "..."))


for _method in _OTHER_METHODS:  # those that are not defined would be answered with a page, and without the headers
    setattr(_Handler, f"do_{_method}", _Handler._refuse)
