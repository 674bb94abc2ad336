"""The demo's server: for this machine and for the page that it serves, alone."""

import json
import logging
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from espnet2_lamer.demo.listening import Listener, NotAudio
from espnet2_lamer.errors import RecipeError

HOST = "127.0.0.1"
#: Largest recording in bytes: a minute of 48 kHz stereo floats has 23 million.
MAX_BYTES = 32 * 2**20
TOKEN_HEADER = "X-Lamer-Token"
_STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    # The page loads nothing from elsewhere, and nobody puts it into a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src "
    "'self'; connect-src 'self'; media-src blob:; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class DemoServer(ThreadingHTTPServer):
    """Serves the page and listens to what it records.

    Other users of the machine do not know the ``token`` in its address, other pages of
    the browser may neither read it nor send the header it must come in. One recording
    is computed at a time.

    Raises:
        RecipeError: Another program has the port.
    """

    daemon_threads = True

    def __init__(self, listener: Listener, port: int = 0) -> None:
        self.listener = listener
        self.token = secrets.token_urlsafe(16)
        self.one_at_a_time = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise RecipeError(
                f"--port {port}: cannot be opened ({error.strerror}); another program "
                "has it: choose another, or 0 for a free one"
            ) from error

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with one request, and go on."""
        logging.warning("a request failed", exc_info=True)


class _Refused(Exception):
    """An answer with an HTTP status other than 200, and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    server_version, sys_version = "lamer", ""
    # Whoever promises bytes and sends none does not hold a thread for ever.
    timeout = 30

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Any) -> None:
        try:
            self._check_host()
            content, kind = respond()
            self._send(200, content, kind)
        except _Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})
        except RecipeError as error:
            status = 415 if isinstance(error, NotAudio) else 422
            self._send_json(status, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            logging.exception("the models failed on a recording")
            message = "the model failed; the program's output says how"
            self._send_json(500, {"error": message})

    def _get(self) -> tuple[bytes, str]:
        address = urlsplit(self.path)
        if address.path == "/model":
            self._check_token()
            return json.dumps(self.server.listener.describe()).encode(), _JSON
        if address.path not in _STATIC:
            raise _Refused(404, "no such page")
        if address.path == "/":
            given = parse_qs(address.query).get("token", [""])[0]
            self._compare(given)
        name, kind = _STATIC[address.path]
        return files(__package__).joinpath(name).read_bytes(), kind

    def _post(self) -> tuple[bytes, str]:
        if urlsplit(self.path).path != "/listen":
            raise _Refused(404, "no such page")
        self._check_token()
        content = self._body()
        wave = self.server.listener.read(content)
        with self.server.one_at_a_time:
            result = self.server.listener.listen(wave)
        return json.dumps(result).encode(), _JSON

    def _check_host(self) -> None:
        """Refuse names that only lead here: a page may have its own name do so."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if ":" in host else host
        if name not in (HOST, "localhost"):
            raise _Refused(403, f"Host: found {host[:80]!r}, expected {HOST}")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{host}"):
            raise _Refused(403, "another page asks for this; open the printed address")

    def _check_token(self) -> None:
        self._compare(self.headers.get(TOKEN_HEADER, ""))

    def _compare(self, token: str) -> None:
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                403, "found no or an old token: open the address that was printed"
            )

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is None or not length.isascii() or not length.isdigit():
            raise _Refused(411, "expected a Content-Length")
        if int(length) > MAX_BYTES:
            # Unread, so that nothing of it has to be received.
            self.close_connection = True
            raise _Refused(
                413, f"found {length} bytes, expected at most {MAX_BYTES}: give a part"
            )
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise ConnectionError("the recording ended early")
        return content

    def _send_json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), _JSON)

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in (headers | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  theirs
        # Without the token, which addresses hold.
        line = (format % args).replace(self.server.token, "...")
        logging.debug("%s", line)


_JSON = "application/json"
