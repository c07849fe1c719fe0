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

from triops.gateway.cli.output import Failure, json_option, refuse_config
from triops.runtime.instance import Discovery, read_discovery
from triops.runtime.paths import Paths, StateError, locate

if TYPE_CHECKING:
    from triops.runtime.config_file import LoadedConfig

P = ParamSpec("P")
R = TypeVar("R")

CALL_SECONDS = 30.0
START_HINT = "Start one: triops gateway start (its log: triops logs)"


class Gateway:
    """The gateway that a command talks to; nothing is looked up before the first use."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url = url
        self._token = token

    @functools.cached_property
    def paths(self) -> Paths:
        try:
            return locate(os.environ)
        except StateError as error:
            refuse_config(error)

    @functools.cached_property
    def discovery(self) -> Discovery | None:
        """The gateway of this user's state folder, if one runs."""
        try:
            return read_discovery(self.paths)
        except StateError as error:
            refuse_config(error)

    @property
    def is_known(self) -> bool:
        """Whether there is a gateway to talk to: one was named, or one was found."""
        return self._url is not None or self.discovery is not None

    @functools.cached_property
    def url(self) -> str:
        if self._url is not None:
            return self._url
        if self.discovery is None:
            error = {"code": "NOT_RUNNING"}
            raise Failure(f"no gateway runs on {self.paths.state}", START_HINT, error=error)
        return self.discovery.url

    @functools.cached_property
    def token(self) -> str | None:
        """What was given, else the local gateway's own; never that for another address."""
        if self._token is not None:
            return self._token
        if self.discovery is None or _address(self.url) != _address(self.discovery.url):
            return None
        try:
            return self._configured_token() or Path(self.discovery.token_file).read_text("utf-8").strip()
        except FileNotFoundError:
            return None  # it may want none; otherwise it will say so

    def _configured_token(self) -> str | None:
        names = [f"{owner}_GATEWAY_{secret}" for owner in ("TRIOPS", "OPENCLAW") for secret in ("TOKEN", "PASSWORD")]
        if not self.paths.config.exists() and not any(map(os.environ.get, names)):
            return None  # the ordinary case, and the reader of configurations is not cheap to load
        auth = load_configuration(self.paths).config.gateway.auth
        secret = auth.password if auth.mode == "password" else auth.token
        return secret.reveal() if secret is not None else None

    def call(self, method: str, params: dict[str, Any], *, wait: bool = False) -> Any:
        """The payload of one method; with `wait`, that of the end of the run it starts, however long it takes."""
        target = f"/rpc/{quote(method, safe='')}" + ("?wait=final" if wait else "")
        status, body = self._exchange("POST", target, json.dumps(params), None if wait else CALL_SECONDS)
        if status == 200:
            return body
        raise _refused(status, body)

    def is_ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return self._exchange("GET", "/readyz", None, CALL_SECONDS)[0] == 200
        except Failure:
            return False

    def _exchange(self, verb: str, target: str, body: str | None, seconds: float | None) -> tuple[int, Any]:
        host, port, secure = _address(self.url)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, port, timeout=seconds)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        try:
            connection.request(verb, target, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            error_object = {"code": "UNREACHABLE", "url": self.url}
            raise Failure(
                f"no answer from {self.url}: {error or type(error).__name__}", START_HINT, error=error_object
            ) from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data) if data else None
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


def load_configuration(paths: Paths) -> "LoadedConfig":
    """The configuration, or the end of the command with exit code 78."""
    from triops.runtime.config_file import load_config
    from triops.runtime.config_reader import ConfigError

    try:
        return load_config(paths, os.environ)
    except ConfigError as error:
        refuse_config(error)


def _address(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url if "//" in url else f"//{url}")
    secure = parts.scheme in ("https", "wss")
    return parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80), secure


def _refused(status: int, body: Any) -> Failure:
    """What a gateway, or something else on its port, answered: `{"error": {…}}`, the bare error, or a text."""
    inner: Any = cast("dict[str, Any]", body).get("error", body) if isinstance(body, dict) else body
    fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {"message": inner}
    error: dict[str, Any] = {"code": f"HTTP_{status}", "status": status} | fields
    return Failure(str(error.get("message") or f"HTTP {status}"), _next_step(status, error), error=error)


def _next_step(status: int, error: dict[str, Any]) -> str:
    if status == 401:
        return "The token is not this gateway's: give it with --token, or restart the gateway if its config changed."
    if "CRON_JOB_NOT_FOUND" in str(error.get("details")):
        return "`triops cron list --all` shows the jobs there are."
    if error.get("retryable"):
        return f"Try again in {max(1, round((error.get('retryAfterMs') or 1000) / 1000))} s."
    return ""
