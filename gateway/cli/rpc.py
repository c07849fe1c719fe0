"""Calls to a running gateway over plain HTTP: found by its discovery file, or named by `--url`.

No event loop: the standard library's blocking client, because these commands should be over before one is loaded.
"""

import functools
import http.client
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import quote, urlsplit

import click

from triops.gateway.cli.failures import AUTH_HINT, START_HINT, Exit, Failure, remedy_of
from triops.gateway.cli.output import json_option
from triops.runtime.instance import Discovery, read_discovery
from triops.runtime.paths import Paths, locate

if TYPE_CHECKING:
    from triops.runtime.config_file import LoadedConfig

P = ParamSpec("P")
R = TypeVar("R")

CALL_SECONDS = 30.0
SECRETS = [f"{owner}_GATEWAY_{secret}" for owner in ("TRIOPS", "OPENCLAW") for secret in ("TOKEN", "PASSWORD")]


class Gateway:
    """The gateway that a command talks to; nothing is looked up before the first use."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url = url
        self._token = token
        if url is not None:
            try:
                _address(url)
            except ValueError as error:
                raise Failure(f"--url {url!a}: {error}", "Write it as http://host:port.", code=Exit.USAGE) from None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise Failure("--token has characters that no token has", "Copy it again.", code=Exit.USAGE)

    @functools.cached_property
    def paths(self) -> Paths:
        return locate(os.environ)

    @functools.cached_property
    def discovery(self) -> Discovery | None:
        """The gateway of this user's state folder, if one runs."""
        return read_discovery(self.paths)

    @property
    def is_named(self) -> bool:
        """Whether the user gave its address; else it is this machine's own."""
        return self._url is not None

    def looked_for_again(self) -> "Gateway":
        """The same one, as it is found now."""
        return Gateway(self._url, self._token)

    @property
    def is_known(self) -> bool:
        """Whether there is a gateway to talk to: one was named, or one was found."""
        return self.is_named or self.discovery is not None

    @property
    def url(self) -> str:
        if not self.is_known:
            raise Failure(f"no gateway runs on {self.paths.state}", START_HINT, error={"code": "NOT_RUNNING"})
        return self._url or cast("Discovery", self.discovery).url

    @functools.cached_property
    def token(self) -> str | None:
        """What was given, else the local gateway's own; never that for another address."""
        found = self.discovery
        if self._token is not None or found is None or _address(self.url) != _address(found.url):
            return self._token
        file = Path(found.token_file) if found.token_file else None
        if file and file.exists():  # what the running gateway has, whatever this shell says
            return file.read_text("utf-8").strip()
        if self.paths.config.exists() or any(map(os.environ.get, SECRETS)):  # else the reader is not worth its loading
            auth = self.load_configuration().config.gateway.auth
            if secret := auth.password if auth.mode == "password" else auth.token:
                return secret.reveal()
        return None

    def load_configuration(self) -> "LoadedConfig":
        """The configuration of this user. Raises `ConfigError`."""
        from triops.runtime.config_file import load_config

        return load_config(self.paths, os.environ)

    def call(self, method: str, params: dict[str, Any], *, wait: bool = False) -> Any:
        """The payload of one method; with `wait`, that of the end of the run it starts, however long it takes."""
        target = f"/rpc/{quote(method, safe='')}" + ("?wait=final" if wait else "")
        status, body = self._exchange("POST", target, json.dumps(params), None if wait else CALL_SECONDS)
        if status != 200:
            raise _refused(status, body)
        return body

    def is_ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return self._exchange("GET", "/readyz", None, CALL_SECONDS)[0] == 200
        except Failure:
            return False

    def _exchange(self, verb: str, target: str, body: str | None, seconds: float | None) -> tuple[int, Any]:
        host, port, secure = _address(self.url)
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(host, port, timeout=seconds)
        proof = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            connection.request(verb, target, body, {"Content-Type": "application/json"} | proof)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            words = f"no answer from {self.url}: {error or type(error).__name__}"
            raise Failure(words, START_HINT, error={"code": "UNREACHABLE", "url": self.url}) from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data or "null")
        except ValueError:
            return answer.status, data.decode("utf-8", "replace")[:500]


def gateway_options(command: Callable[Concatenate[Gateway, P], R]) -> Callable[..., R]:
    """Give a command `--url`, `--token` and `--json`, and the gateway that they name as its first argument."""

    @click.option("--url", help="Gateway to use instead of this machine's own: http://host:port.")
    @click.option("--token", help="Its token; this machine's own is found by itself.")
    @json_option
    @functools.wraps(command)
    def wrapped(url: str | None, token: str | None, *args: P.args, **options: P.kwargs) -> R:
        return command(Gateway(url, token), *args, **options)

    return wrapped


def _address(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url if "//" in url else f"//{url}")
    secure = parts.scheme in ("https", "wss")
    return parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80), secure


def _refused(status: int, body: Any) -> Failure:
    """What a gateway, or something else on its port, answered: `{"error": {…}}`, the bare error, or a text."""
    inner: Any = cast("dict[str, Any]", body).get("error", body) if isinstance(body, dict) else body
    fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {"message": inner}
    error: dict[str, Any] = {"code": f"HTTP_{status}", "status": status} | fields
    hint = remedy_of(error.get("details"))
    if status == 401:
        hint = hint or AUTH_HINT
    elif not hint and error.get("retryable"):
        hint = f"Try again in {max(1, round((error.get('retryAfterMs') or 1000) / 1000))} s."
    return Failure(str(error.get("message") or f"HTTP {status}"), hint, error=error)
