"""Every frame that a gateway sends, checked: by the published schema where it defines one, else by the shapes that the
recordings of a real gateway had (`recorded_shapes.json`: each key with its types, `?` where it was sometimes absent; of
what we never send nothing, and null also where only the documentation allows it).

The reference client checks next to nothing in what it gets, so that it works is no proof that the frames are right.
"""

import copy
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import fastjsonschema
import pytest
import wsproto.events as ws
from tests.kit.node import published_schema
from wsproto import WSConnection

Place = tuple[str, ...]

ANSWERS = {
    "connect": "HelloOk",
    "agent.identity.get": "AgentIdentityResult",
    "channels.status": "ChannelsStatusResult",
    "cron.add": "CronAddResult",
    "cron.get": "CronJob",
    "device.scopes.requestUpgrade": "ScopeUpgradeRegistration",
    "device.scopes.waitUpgrade": "ScopeUpgradeResult",
    "device.token.rotate": "DeviceTokenRotateResult",
    "logs.tail": "LogsTailResult",
    "models.list": "ModelsListResult",
    "sessions.create": "SessionsCreateResult",
}
"""Methods whose answers the published schema defines."""

MEMBERS = {
    ("cron.list", "jobs"): "CronJob",
    ("cron.runs", "entries"): "CronRunLogEntry",
    ("presence", "presence"): "PresenceEntry",
    ("sessions.list", "sessions"): "SessionRow",
    ("system-presence", ""): "PresenceEntry",
}
"""Lists in answers and events whose members it defines; "" is the answer itself."""

PARTS = {
    ("cron", "job"): "CronJob",
    ("session.message", "session"): "SessionRow",
    ("sessions.changed", "session"): "SessionRow",
}
"""Members of events that it defines."""

EVENTS = {
    "agent": "AgentEvent",
    "device.pair.requested": "DevicePairRequestedEvent",
    "device.pair.resolved": "DevicePairResolvedEvent",
    "session.tool": "AgentEvent",
    "tick": "TickEvent",
    "shutdown": "ShutdownEvent",
}
"""Events whose payloads it defines. `chat` is one of five, by its state."""

CHAT = {
    "status": "ChatStatusEvent",
    "delta": "ChatDeltaEvent",
    "final": "ChatFinalEvent",
    "aborted": "ChatAbortedEvent",
    "error": "ChatErrorEvent",
}

BEYOND: dict[str, dict[Place, tuple[str, ...]]] = {
    # What the real gateway sends, as its recordings show, and the published schema does not know. Of tools it sends the
    # session's row too.
    "AgentEvent": {(): ("sessionKey", "agentId", "sessionId", "lane", "session")},
    "ChannelsStatusResult": {(): ("statusIssues",)},
    "ChatStatusEvent": {(): ("retry",)},
    "CronJob": {(): ("effectiveAgentId",)},  # in cron.list
    "HelloOk": {("auth",): ("method",), ("snapshot", "presence", "*"): ("clientId",)},
    "PresenceEntry": {(): ("clientId",)},
}


@cache
def _definitions() -> dict[str, Any]:
    return json.loads(published_schema().read_text("utf-8"))["definitions"]


@cache
def _check_of(name: str) -> Callable[[Any], Any]:
    schema = copy.deepcopy(_definitions()[name])
    for path, keys in BEYOND.get(name, {}).items():
        place = schema
        for step in path:
            place = place["items"] if step == "*" else place["properties"][step]
        place["properties"] |= {key: {} for key in keys if key not in place["properties"]}
    return fastjsonschema.compile({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, use_default=False)


def published_faults(name: str, value: Any) -> list[str]:
    """What of `value` does not fit the definition."""
    try:
        _check_of(name)(value)
    except fastjsonschema.JsonSchemaValueException as fault:
        return [f"{name}: {fault.message}"]
    return []


# -- the recordings' shapes --------------------------------------------------------------------------------------------

OURS: dict[str, tuple[str, ...]] = {
    # Known from the protocol's documentation; it did not happen while the recordings were made.
    "agent lifecycle": ("errorKind",),
    "agent lifecycle.errorObservation": ("httpStatus",),
    "chat delta": ("spawnedBy",),
    "chat error": ("stopReason", "spawnedBy"),
    "chat error.errorDetail": ("httpStatus",),
    "chat final": ("spawnedBy",),
    "chat status": ("retry", "spawnedBy"),
    "event health.agents[]": ("name",),
    "event session.message.message": ("details", "errorMessage", "isError", "source", "toolCallId", "toolName"),
    "event sessions.changed": (
        *("classification", "isBackground", "isMain", "lastInteractionAt", "lastMessagePreview"),
        *("parentSessionKey", "spawnedBy"),  # null where there is none, as for the other fields
    ),
    "res agent": ("stopReason", "mergedInto"),  # the latter is ours, as is `source`: which job a message came from
    "res agent.wait": ("error", "mergedInto", "providerStarted", "timeoutPhase"),
    "res chat.history": ("inFlightRun", "nextOffset"),
    "res chat.history.messages[]": ("details", "errorMessage", "source"),
    "res chat.history.messages[].content[]": ("data", "mimeType"),  # an image
    "res chat.history.sessionInfo": ("lastMessagePreview", "lastRunError"),
    "res chat.send": ("endedAt", "messageSeq", "stopReason", "summary"),
    "res device.pair.approve.device": ("displayName", "lastSeenAtMs", "lastSeenReason", "operatorLabel", "remoteIp"),
    "res device.pair.approve.device.tokens[]": ("lastUsedAtMs", "revokedAtMs", "rotatedAtMs"),
    "res device.pair.list.paired[]": ("displayName", "operatorLabel", "remoteIp"),
    "res device.pair.list.paired[].tokens[]": ("lastUsedAtMs", "revokedAtMs", "rotatedAtMs"),
    "res device.pair.list.pending[]": ("displayName", "remoteIp"),
    "res health.agents[]": ("name",),
    "res sessions.list": ("offset",),
    "res sessions.reset.entry": ("label", "spawnDepth"),
    "res status.sessions.defaults": ("modelProvider", "modelSelectionTarget"),
    # Ours: what `triops gateway status` shows.
    "res status": (
        *("ok", "ts", "uptimeMs", "python", "listening", "configPending"),
        *("clients", "runs", "models", "cron", "statistics"),
    ),
    "res status.modelRuntime": ("providers",),
    "res health": ("modelRuntime",),
    "res sessions.subscribe": ("list",),
}
"""Keys beyond the recorded ones, by the place that has them."""

UNRECORDED = (
    "res device.pair.rename",
    "res device.token.revoke",
    "res gateway.token.rotate",
    "res sessions.messages.unsubscribe",
    "res sessions.send",
    "res sessions.unsubscribe",
)
"""Nothing of these was recorded."""


@cache
def _shapes() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("recorded_shapes.json").read_text("utf-8"))


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    return kinds[type(value)]


def shape_faults(name: str, value: Any) -> list[str]:
    """What of `value` was never seen in the recordings, or always was and is not there."""
    if name in UNRECORDED:
        return []
    shape = _shapes().get(name)
    return [f"{name}: nothing of this name was recorded"] if shape is None else list(_faults(shape, value, name))


def _faults(shape: Any, value: Any, path: str) -> Generator[str]:
    if isinstance(shape, dict) and "anyOf" in shape:
        found = [list(_faults(each, value, path)) for each in shape["anyOf"]]
        yield from min(found, key=len)
    elif shape == "any" or shape == []:
        pass
    elif isinstance(shape, dict) and isinstance(value, dict):
        if "*" in shape:
            for each in value.values():
                yield from _faults(shape["*"], each, f"{path}.*")
            return
        ours = OURS.get(path, ())
        for key, each in value.items():
            if key in ours:
                continue
            known = shape.get(key, shape.get(f"{key}?"))
            if known is None:
                yield f"{path} has {key!r} ({type(each).__name__}), which was never recorded"
            else:
                yield from _faults(known, each, f"{path}.{key}")
        missing = [key for key in shape if not key.endswith("?") and key not in value]
        yield from (f"{path} lacks {key!r}, which was always recorded" for key in missing)
    elif isinstance(shape, list) and isinstance(value, list):
        for each in value:
            yield from _faults(shape[0], each, f"{path}[]")
    elif isinstance(shape, str) and not isinstance(value, (dict, list)):
        kind = _kind(value)
        if kind not in shape.split("|") and not (kind == "integer" and "number" in shape):
            yield f"{path} is {kind}, recorded was {shape}"
    else:
        yield f"{path} is {type(value).__name__}, recorded was {shape}"


# -- frames ------------------------------------------------------------------------------------------------------------


class Conversation:
    """One connection: which request an answer belongs to, and what was wrong in what the gateway said."""

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch
        self._methods: dict[str, str] = {}
        self._seq = 0

    def asked(self, text: str) -> None:
        """The client sent this."""
        try:
            frame = json.loads(text)
            self._methods[frame["id"]] = frame["method"]
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # bad on purpose

    def told(self, text: str) -> None:
        """The gateway sent this."""
        frame = json.loads(text)
        self._watch.frames.append(frame)
        faults = list(self._faults(frame))
        if faults:
            self._watch.faults.append(f"{'; '.join(faults)}\n  {text[:2000]}")

    def _faults(self, frame: dict[str, Any]) -> Generator[str]:
        if frame.get("type") == "event":
            yield from published_faults("EventFrame", frame)
            seq = frame.get("seq")
            if seq is not None:
                if seq != self._seq + 1:
                    yield f"seq {seq} after {self._seq}"
                self._seq = seq
            yield from event_faults(frame["event"], frame.get("payload"))
        else:
            yield from published_faults("ResponseFrame", frame)
            method = self._methods.get(frame["id"])
            if frame.get("ok") and method is not None:
                yield from answer_faults(method, frame.get("payload"))


def event_faults(name: str, payload: Any) -> Generator[str]:
    """What is wrong with an event's payload."""
    yield from _part_faults(name, payload)
    if name in EVENTS:
        yield from published_faults(EVENTS[name], payload)
    if name == "chat":
        yield from published_faults(CHAT[payload["state"]], payload)
        yield from shape_faults(f"chat {payload['state']}", payload)
    elif name in ("agent", "session.tool"):
        yield from shape_faults(f"agent {payload['stream']}", payload["data"])
    elif name not in EVENTS:
        yield from shape_faults(f"event {name}", payload)


def answer_faults(method: str, payload: Any) -> Generator[str]:
    """What is wrong with an answer's payload."""
    if method in ANSWERS:
        yield from published_faults(ANSWERS[method], payload)
        return
    yield from _part_faults(method, payload)
    if (method, "") not in MEMBERS:
        yield from shape_faults(f"res {method}", payload)


def _part_faults(whole: str, payload: Any) -> Generator[str]:
    for (of, key), name in MEMBERS.items():
        if of == whole:
            for member in payload[key] if key else payload:
                yield from published_faults(name, member)
    for (of, key), name in PARTS.items():
        if of == whole and key in payload:
            yield from published_faults(name, payload[key])


class Watch:
    """All that was said on connections of this test."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.faults: list[str] = []

    def conversation(self) -> Conversation:
        return Conversation(self)

    def check(self) -> None:
        assert not self.faults, f"{len(self.faults)} frames do not fit:\n" + "\n".join(self.faults[:5])


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Generator[Watch]:
    """Listen in on every WebSocket client of this process, for both of them frame with wsproto."""
    watch = Watch()
    conversations: WeakKeyDictionary[WSConnection, tuple[Conversation, list[str]]] = WeakKeyDictionary()
    send, events = WSConnection.send, WSConnection.events

    def of(connection: WSConnection) -> tuple[Conversation, list[str]]:
        return conversations.setdefault(connection, (watch.conversation(), []))

    def heard_send(self: WSConnection, event: ws.Event) -> bytes:
        if self.client and isinstance(event, ws.TextMessage):
            of(self)[0].asked(event.data)
        return send(self, event)

    def heard_events(self: WSConnection) -> Generator[ws.Event]:
        for event in events(self):
            if self.client and isinstance(event, ws.TextMessage):
                conversation, parts = of(self)
                parts.append(event.data)
                if event.message_finished:
                    text = "".join(parts)
                    parts.clear()
                    conversation.told(text)
            yield event

    monkeypatch.setattr(WSConnection, "send", heard_send)
    monkeypatch.setattr(WSConnection, "events", heard_events)
    yield watch
