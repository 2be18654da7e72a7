"""The chat over HTTP: one page, and a JSON interface that it talks to.

``GET /`` is the page, ``GET /api/catalogue`` what is talked about, ``POST /api/start`` opens a dialogue with each
policy, ``POST /api/answer`` says something in one, and ``GET /api/state?id=`` is where one stands. What is refused is
answered by 400 (bad input), 403 (another site's page), 404 (no such path or dialogue), 405, 413 or 415, each with
``{"error": "..."}`` of one line.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from apps.crs.chat.dialogues import Dialogues, UnknownDialogue
from apps.crs.chat.requests import Requests
from apps.crs.policies import Policy
from core.errors import InputError
from simulators.crs.conversation import Conversation

PAGE = Path(__file__).with_name("page.html")
LARGEST_BODY = 64 * 1024
"""Bytes."""
DRAINED = 1024 * 1024
"""Bytes of a larger body that are read before it is refused."""
PATIENCE = 30.0
"""Seconds that a connection may keep a thread waiting."""
DIALOGUES, TTL = 500, 3600.0
"""Open dialogues, and seconds until one that is not used is forgotten."""


class ChatServer(ThreadingHTTPServer):
    """Listens from when it is made; ``serve_forever`` answers, ``shutdown`` and ``server_close`` end it.

    Attributes:
        requests: what answers.
        url: where the page is.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, requests: Requests, host: str, port: int) -> None:
        self.requests, self.host = requests, host
        self.page = PAGE.read_bytes()
        self.policy = _content_policy(self.page.decode())
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = found[0]
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{host} port {port}: {reason.lower()}") from error
        self.url = f"http://{_authority(host, self.server_address[1])}/"

    def server_bind(self) -> None:
        """Bind, without asking a name server for the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""

    def trusts(self, host: str | None) -> bool:
        """Whether a Host header is one that leads here.

        On a loopback address only its own names are: another name that was made to point here belongs to a page of
        another site (DNS rebinding).
        """
        if not is_loopback(self.host):
            return True
        name = urlsplit(f"//{host or ''}").hostname
        return name is not None and (name == self.host.lower() or is_loopback(name))


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "szilard", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_HEAD(self) -> None:
        self._answer(self._refuse_method)

    do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_HEAD

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what people look for is theirs."""

    # ---- requests

    def _answer(self, act: Callable[[], dict[str, Any] | bytes]) -> None:
        try:
            if not self.server.trusts(self.headers.get("Host")):
                raise _Refused(HTTPStatus.FORBIDDEN, "Host: is not an address of this service")
            self._send(HTTPStatus.OK, act())
        except _Refused as error:
            self._refuse(error.status, str(error))
        except UnknownDialogue as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error.args[0]))
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the service failed: {type(error).__name__}: {error}")

    def _get(self) -> dict[str, Any] | bytes:
        parts = urlsplit(self.path)
        if parts.path == "/":
            return self.server.page
        if parts.path == "/api/catalogue":
            return self.server.requests.catalogue()
        if parts.path == "/api/state":
            names = parse_qs(parts.query).get("id", [])
            if len(names) != 1:
                raise InputError("id: give the id of one dialogue")
            return self.server.requests.state(names[0])
        raise _Refused(HTTPStatus.NOT_FOUND, f"{parts.path[:100]}: no such path")

    def _post(self) -> dict[str, Any]:
        path = urlsplit(self.path).path
        acts = {"/api/start": self.server.requests.start, "/api/answer": self.server.requests.answer}
        if path not in acts:
            raise _Refused(HTTPStatus.NOT_FOUND, f"{path[:100]}: no such path")
        return acts[path](self._json())

    def _json(self) -> dict[str, Any]:
        """The body, a JSON object."""
        # Another site's form cannot send this type without asking first, and it is never told yes.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: must be application/json")
        given = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", given, re.ASCII):
            raise InputError(f"Content-Length: {given[:40]!r}; must be a number of bytes")
        if int(given) > LARGEST_BODY:
            # Who is still sending would not hear the answer.
            self.rfile.read(min(int(given), DRAINED))
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: {given} bytes; must be at most {LARGEST_BODY}")
        body = self.rfile.read(int(given))
        try:
            data = json.loads(body.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"body: no JSON ({' '.join(str(error).split())[:200]})") from error
        if not isinstance(data, dict):
            raise InputError(f"body: a {type(data).__name__}; must be a JSON object")
        return data

    def _refuse_method(self) -> dict[str, Any]:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command}: must be GET or POST")

    # ---- replies

    def _refuse(self, status: HTTPStatus, line: str) -> None:
        # The body may be unread, so nothing that comes after it on this connection can be told from it.
        self.close_connection = True
        self._send(status, {"error": " ".join(line.split())})

    def _send(self, status: HTTPStatus, content: dict[str, Any] | bytes) -> None:
        is_page = isinstance(content, bytes)
        body = content if isinstance(content, bytes) else json.dumps(content, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", self.server.policy)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def create_server(
    world: Conversation,
    policies: Mapping[str, Policy],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    cap: int = DIALOGUES,
    ttl: float = TTL,
) -> ChatServer:
    """A server of dialogues with one policy or several side by side; it listens, and answers in ``serve_forever``.

    Args:
        world: the conversation.
        policies: by the names that are shown.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        cap: most open dialogues.
        ttl: seconds until a dialogue that is not used is forgotten.

    Raises:
        InputError: no policy, or an address that cannot be had.
    """
    return ChatServer(Requests(world, policies, Dialogues(cap, ttl)), host, port)


def serve(
    world: Conversation,
    policies: Mapping[str, Policy],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    cap: int = DIALOGUES,
    ttl: float = TTL,
    say: Callable[[str], None] = print,
) -> None:
    """Serve dialogues until Ctrl-C; see ``create_server``. The last line that is said has the address."""
    with create_server(world, policies, host, port, cap=cap, ttl=ttl) as server:
        if not is_loopback(host):
            say(f"warning: {host} is no loopback address, and whoever reaches it can chat")
        say(f"serving {world.catalogue.name} with {', '.join(policies)} on {server.url}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _content_policy(page: str) -> str:
    """What a browser may load and run: the page's own script and style, and nothing from elsewhere."""
    allowed = ["default-src 'none'", "connect-src 'self'", "img-src data:"]
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        blocks = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        allowed.append(" ".join([name, *(f"'sha256-{found}'" for found in hashes)]))
    return "; ".join([*allowed, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
