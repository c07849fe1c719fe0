"""Bodies of the routes of OpenAI's clients (protocol, HTTP §3). Open objects: clients send keys of every year."""

from typing import Annotated, Any, Literal

import msgspec

from triops.gateway.schema.chat import Str1

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Choice = Literal["auto", "none", "required"]
ToolName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class ImageUrl(msgspec.Struct, frozen=True):
    url: str
    detail: str | None = None


class Source(msgspec.Struct, frozen=True):
    type: Literal["base64", "url"]
    media_type: str = ""
    data: str = ""
    url: str = ""
    filename: str = ""


class Part(msgspec.Struct, frozen=True):
    """A piece of a message's content, of either API."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url", "input_image", "input_file"]
    text: str = ""
    refusal: str = ""
    image_url: str | ImageUrl | None = None
    source: Source | None = None
    file_data: str | None = None
    filename: str | None = None


Content = str | tuple[Part, ...] | None


class Function(msgspec.Struct, frozen=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: str = ""


class ChatTool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: Function


class CalledTool(msgspec.Struct, frozen=True):
    id: str
    function: Function
    type: str = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[CalledTool, ...] | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class ChosenTool(msgspec.Struct, frozen=True):
    """`{type, function: {name}}` of one API, `{type, name}` of the other."""

    type: Literal["function"]
    function: NamedFunction | None = None
    name: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class ResponseFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatCompletions(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    model: str = "openclaw"
    messages: tuple[ChatMessage, ...]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Str1 | None = None
    tools: tuple[ChatTool, ...] | None = None
    tool_choice: Choice | ChosenTool | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    stop: str | Annotated[tuple[str, ...], msgspec.Meta(max_length=4)] | None = None
    response_format: ResponseFormat | None = None


class ResponseTool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Item(msgspec.Struct, frozen=True):
    """One element of `input`; which fields count depends on `type`."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Content = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: Content = ""


class Responses(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/responses`."""

    model: str = "openclaw"
    input: str | tuple[Item, ...]
    instructions: str | None = None
    tools: tuple[ResponseTool, ...] | None = None
    tool_choice: Choice | ChosenTool | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    user: Str1 | None = None
    previous_response_id: str | None = None


class Runs(Responses, frozen=True, kw_only=True):
    """Body of `POST /v1/runs`."""

    session_key: Str1 | None = None
    idempotency_key: Str1 | None = None
