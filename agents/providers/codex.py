"""Models of an account of the Codex CLI, which exist only through the hook `resolve_dynamic`: no list here holds them.

Speaks the Responses format; knows the CLI's login file and how the account lists its models. It was never tried with a
real account: its tests run against a mock of one.
"""

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


def _encode(request: ModelRequest, base_url: str, memo: Memo) -> bytes:
    """As the public API, but limits and temperature are refused and instructions are not optional."""
    return msgspec.json.encode({"instructions": "", **request_fields(request, memo), **dict(request.model.params)})


class _Tokens(msgspec.Struct):
    access_token: str
    account_id: str = ""


class _LoginFile(msgspec.Struct):
    tokens: _Tokens


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

    `login_file` is the CLI's, read anew for each request, so that its refreshed tokens are used. `http` stays its
    owner's.
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
        **more: Any,
    ) -> None:
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

    async def _login(self) -> dict[str, str]:
        try:
            tokens = msgspec.json.decode(await trio.Path(self._login_file).read_bytes(), type=_LoginFile).tokens
        except OSError:
            raise ProviderError("auth", f"no Codex login at {self._login_file}; run: codex login") from None
        except NOT_JSON:
            raise ProviderError("auth", f"no ChatGPT login in {self._login_file}; run: codex login") from None
        login = {"authorization": f"Bearer {tokens.access_token}"}
        return {**login, "chatgpt-account-id": tokens.account_id} if tokens.account_id else login
