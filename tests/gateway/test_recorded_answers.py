"""What a real gateway of this protocol always answered with stands in our answers, too; or here, with the reason.

`recordings/answers.json` names, for each call, the members that every recorded answer has (`a.b`, `list[].member`).
"""

import json
from pathlib import Path
from typing import Any

from tests.kit.host import TestHost, open_test_gateway
from tests.kit.wire import Client

RECORDED: dict[str, list[str]] = json.loads((Path(__file__).parent / "recordings" / "answers.json").read_text("utf-8"))
_SESSION = (  # one user, and one way to run an agent: nobody to share with, nothing to switch
    "agentRuntime effectiveFastMode effectiveFastModeSource effectiveQueueMode effectiveResponseUsage"
    " expandedParticipants fastAutoOnSeconds modelOverrideSource participantCount participants permissionModePending"
    " runtimeSelectionLocked sharingRole snapshotAt"
)
_THINKING = "thinkingDefault thinkingLevels"  # models think as they are configured


def below(path: str, names: str) -> set[str]:
    return {f"{path}.{name}".lstrip(".") for name in names.split()}


LEFT_OUT = {
    "agent, over": below(  # how the other runtime went about it, and what the caller knows already
        "result.meta",
        "completion executionTrace finalAssistantRawText finalAssistantVisibleText finalPromptText replayInvalid"
        " requestShaping systemPromptReport",
    )
    | below(
        "result.meta.agentMeta",
        "agentHarnessId assistantTurns bridgeCalls codeModeEngaged contextBudgetStatus contextTokens"
        " contextTokensSource costUsd credentialSource lastCallUsage promptTokens sessionFile terminalReceipt"
        " usage.cost",
    )
    | {"result.sourceReplyDeliveryState"},  # no channels
    "chat.history": below("sessionInfo", f"{_SESSION} activeLeafEntryId activitySummary systemSent")
    | {"defaults.agentRuntime", "deltaCursor", "messages[].__openclaw.transcriptPosition"},  # no branches, no cursor
    "sessions.list": below("sessions[]", f"{_SESSION} {_THINKING} thinkingOptions")
    | below("sessions[]", "contextBudgetStatus estimatedCostUsd placement")
    | below("defaults", f"{_THINKING} thinkingOptions agentRuntime"),
    "sessions.create": below("entry", "delivery modelOverrideSource sessionRoot"),
    "sessions.reset": below(  # zero after a reset, and in the row that `sessions.changed` brings
        "entry",
        "abortedLastRun chatType compactionCount delivery inputTokens model modelOverrideSource modelProvider"
        " outputTokens sessionStartedAt systemSent totalTokens totalTokensFresh totalTokensVersion",
    ),
    "models.list": below("models[]", _THINKING),
    "cron.list": {"snapshotRevision"},
    "health": {"configReload", "eventLoop", "plugins"},  # optional in the protocol
    "status": below(  # no task ledger, no worker pools, no desktop, no channel that a heartbeat waits for
        "",
        "eventLoop heartbeat.agents[].waitingForRoute hostDesktop processMemory shutdownBudget taskAudit tasks"
        " workerPools",
    )
    | below(
        "sessions.recent[]",
        "configuredModel flags modelSelectionReason percentUsed remainingTokens runtime selectedModel",
    ),
    "channels.status": {"eventLoop"},
    "config.get": {"agentRosterIncludeOwned", "bindingsIncludeOwned", "includeProvenance", "includedPaths"},
    "system-presence": {"[].deviceFamily", "[].instanceId"},  # of a client that says it
    "last-heartbeat": {"message", "reason"},  # of one that was skipped
    "logs.tail": {"reset", "truncated"},  # only when true
}
HELD = {"key": "agent:main:main"}
TURN = {
    "name": "iso",
    "schedule": {"kind": "cron", "expr": "0 7 * * *", "tz": "Europe/Berlin"},
    "payload": {"kind": "agentTurn", "message": "SAY:cronned"},
    "sessionTarget": "isolated",
    "delivery": {"mode": "none"},
}


def members(value: Any, path: str) -> list[dict[str, Any]]:
    """The objects at a path: of lists, all."""
    found = [value]
    for step in filter(None, path.split(".")):
        name, many = step.removesuffix("[]"), step.endswith("[]")
        if name:
            found = [each[name] for each in found if isinstance(each, dict) and name in each]
        if many:
            found = [one for each in found for one in each]
    return [each for each in found if isinstance(each, dict)]


def missing(value: Any, wanted: list[str]) -> set[str]:
    """The wanted paths that some object lacks."""
    lacking: set[str] = set()
    for path in wanted:
        above, _, name = path.rpartition(".")
        if not (objects := members(value, above)) or any(name not in each for each in objects):
            lacking.add(path)
    return {path for path in lacking if not any(path.startswith((f"{other}.", f"{other}[]")) for other in lacking)}


async def answers(host: TestHost, client: Client) -> dict[str, Any]:
    """What each call that was recorded answers here."""
    given: dict[str, Any] = {}

    async def ask(method: str, params: object = None, label: str = "") -> Any:
        given[label or method] = answer = await client.request(method, params)
        return answer

    await ask("sessions.subscribe")
    await ask("sessions.messages.subscribe", HELD)
    await ask("chat.send", {"sessionKey": "main", "message": "SAY:hi", "idempotencyKey": "a"})
    await client.ended("a")
    await client.say("HANG", key="hangs")
    await ask("chat.abort", {"sessionKey": "main"})
    await client.ended("hangs")
    id = await client.ask("agent", {"message": "SAY:yes", "idempotencyKey": "b", "sessionKey": "main"})
    given["agent, accepted"] = await client.answer(id)
    given["agent, over"] = await client.answer(id)
    await ask("agent.wait", {"runId": "b"})
    await ask("agent.wait", {"runId": "unheard-of", "timeoutMs": 1}, "agent.wait, no end")
    await ask("chat.history", {"sessionKey": "main"})
    await ask("agent.identity.get")
    await ask("sessions.list")
    made = await ask("sessions.create", {"parentSessionKey": "agent:main:main", "message": "SAY:made"})
    await client.ended(made["runId"])
    await ask("sessions.reset", HELD)
    await ask("models.list")
    job = await ask("cron.add", TURN)
    await ask("cron.list")
    await ask("cron.get", {"id": job["id"]})
    await ask("cron.run", {"id": job["id"]})
    await client.event("cron", action="finished")
    await ask("cron.runs", {"id": job["id"]})
    await ask("cron.status")
    await ask("cron.remove", {"id": job["id"]})
    await ask("wake", {"mode": "next-heartbeat", "text": "noted"})
    await host.http("POST", "/heartbeat")
    for method in ("health", "status", "channels.status", "config.get", "system-presence", "last-heartbeat"):
        await ask(method)
    await ask("logs.tail")
    return given


async def test_recorded_members_stand_in_our_answers(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        given = await answers(host, client)
    assert given.keys() == RECORDED.keys()
    assert {label: missing(given[label], RECORDED[label]) for label in given} == {
        label: LEFT_OUT.get(label, set()) for label in given
    }
