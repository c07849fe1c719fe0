"""Models of an account of the Codex CLI, which exist only through the hook `resolve_dynamic`: no list here holds them.

Speaks the Responses format; knows the CLI's login file and how the account lists its models. It was never tried with a
real account: its tests run against a mock of one.
"""

from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.model import InputKind, ModelInfo, ModelRef, ModelRequest
from triops.agents.providers.faults import NOT_JSON
from triops.agents.providers.http import HttpClient
from triops.agents.providers.memo import Memo
from triops.agents.providers.openai_responses import RESPONSES, request_fields
from triops.agents.providers.wire import Dialect, HttpProvider

BASE_URL = "https://chatgpt.com/backend-api/codex"
CLIENT_VERSION = "1.0.0"
"""The account lists what a client of this version may use."""
TOKEN_URL = "https://auth.openai.com/oauth/token"  # noqa: S105 - an address
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"
"""The Codex CLI's: its logins are renewed for no other."""
RENEW_BEFORE_MS = 300_000
"""How long before its end a login is renewed."""
RENEW_LIMIT = 20.0
"""Seconds."""


def _encode(request: ModelRequest, base_url: str, memo: Memo) -> bytes:
    """As the public API, but limits and temperature are refused and instructions are not optional."""
    return msgspec.json.encode({"instructions": "", **request_fields(request, memo), **dict(request.model.params)})


class _Tokens(msgspec.Struct):
    access_token: str
    account_id: str = ""
    refresh_token: str = ""

    @property
    def expires(self) -> int | None:
        """When the access token does, in epoch milliseconds; None for one that does not say."""
        try:
            claims = self.access_token.split(".")[1]
            return round(msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"] * 1000)
        except (LookupError, ValueError, TypeError, *NOT_JSON):
            return None


class _LoginFile(msgspec.Struct):
    tokens: _Tokens


class _Renewed(msgspec.Struct, omit_defaults=True):
    access_token: str
    refresh_token: str = ""
    id_token: str = ""


class _Listed(msgspec.Struct):
    slug: str
    display_name: str = ""
    context_window: int | None = None
    input_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    supported_reasoning_levels: list[object] = []


class _Account(msgspec.Struct):
    models: list[_Listed]


class CodexProvider(HttpProvider):
    """The account that the Codex CLI is logged in to; it discovers nothing: its models are found when asked for.

    `login_file` is the CLI's, read anew for each request, so that tokens which the CLI renewed are used; a login that
    ends is renewed here, and the CLI finds the new one in its file. `http` stays its owner's.
    """

    dialect = Dialect(
        api="codex",
        chat_url=RESPONSES.chat_url,
        models_url=lambda base: f"{base}/models?client_version={CLIENT_VERSION}",
        encode=_encode,
        parser=RESPONSES.parser,
    )

    def __init__(
        self,
        *,
        http: HttpClient,
        id: str = "codex",
        base_url: str = BASE_URL,
        login_file: Path | None = None,
        token_url: str = TOKEN_URL,
        **more: Any,
    ) -> None:
        self._token_url = token_url
        self._renewing = trio.Lock()
        self._login_file = login_file or Path.home() / ".codex" / "auth.json"
        super().__init__(id=id, base_url=base_url, http=http, login=self._login, **more)

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        """The model, if the account has it.

        Raises:
            ProviderError: `auth` without a login; what the account's endpoint fails with.
        """
        listed = next((model for model in await self._list() if model.slug == model_id), None)
        if listed is None:
            return None
        kinds: tuple[InputKind, ...] = ("text", "image") if "image" in listed.input_modalities else ("text",)
        info = ModelInfo(
            ref=ModelRef(self.id, listed.slug),
            name=listed.display_name or listed.slug,
            api=self.dialect.api,
            input=kinds,
            reasoning=bool(listed.supported_reasoning_levels),
        )
        return msgspec.structs.replace(info, context_window=listed.context_window or info.context_window)

    async def _list(self) -> list[_Listed]:
        answer = await self._list_models()
        try:
            return msgspec.convert(answer, _Account).models
        except msgspec.ValidationError as error:
            raise ProviderError("format", f"{self.id}'s list of models has another shape: {error}") from error

    async def prepare_auth(self) -> int | None:
        """As the protocol says; renews a login that is about to end."""
        return (await self._tokens()).expires

    async def _login(self) -> dict[str, str]:
        tokens = await self._tokens()
        login = {"authorization": f"Bearer {tokens.access_token}"}
        return {**login, "chatgpt-account-id": tokens.account_id} if tokens.account_id else login

    async def _tokens(self) -> _Tokens:
        tokens = await self._read()
        if tokens.expires is None or tokens.expires > self.now() + RENEW_BEFORE_MS or not tokens.refresh_token:
            return tokens
        async with self._renewing:
            tokens = await self._read()  # another one may have done it
            if tokens.expires is not None and tokens.expires <= self.now() + RENEW_BEFORE_MS:
                # A renewed login that is not written down would be lost, and the old one is good for nothing then.
                with trio.move_on_after(RENEW_LIMIT, shield=True):
                    await self._renew(tokens)
            return await self._read()

    async def _renew(self, tokens: _Tokens) -> None:
        asked = {"client_id": CLIENT_ID, "grant_type": "refresh_token", "refresh_token": tokens.refresh_token}
        headers = {"content-type": "application/json"}
        body = msgspec.json.encode(asked | {"scope": "openid profile email"})
        async with self.http.stream("POST", self._token_url, headers, body, idle=RENEW_LIMIT) as response:
            answer = await response.body()
        if response.status != 200:
            words = f"the Codex login has ended and was not renewed (HTTP {response.status}); run: codex login"
            raise ProviderError("auth", words, status=response.status, retryable=response.status >= 500)
        try:
            renewed = msgspec.to_builtins(msgspec.json.decode(answer, type=_Renewed))
        except NOT_JSON as error:
            raise ProviderError("auth", "the renewal of the Codex login was answered with something else") from error
        file = trio.Path(self._login_file)
        whole = msgspec.json.decode(await file.read_bytes())
        whole["tokens"] |= renewed
        whole["last_refresh"] = datetime.fromtimestamp(self.now() / 1000, UTC).isoformat()
        draft = file.with_name(f"{file.name}.triops")
        await draft.touch(mode=0o600)
        await draft.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
        await draft.replace(file)

    async def _read(self) -> _Tokens:
        try:
            return msgspec.json.decode(await trio.Path(self._login_file).read_bytes(), type=_LoginFile).tokens
        except OSError:
            raise ProviderError("auth", f"no Codex login at {self._login_file}; run: codex login") from None
        except NOT_JSON:
            raise ProviderError("auth", f"no ChatGPT login in {self._login_file}; run: codex login") from None
