"""One call of a tool over plain HTTP."""

from pathlib import Path
from typing import Any

import msgspec
from tests.kit.host import TestHost, open_test_gateway

from triops.agents.tool import Tool, ToolContext, ToolResult, text_result
from triops.gateway.http.tools import DENIED, OWNERS


class Count(msgspec.Struct, frozen=True):
    number: int = 1


async def count(args: Count, context: ToolContext) -> ToolResult:
    if args.number == 13:
        raise RuntimeError("an accident of the tool's own")
    return text_result(f"{args.number} in {context.session_key}")


def tool(name: str) -> Any:
    return Tool(name, "Counts.", Count, count)


async def invoke(host: TestHost, body: object, **more: Any) -> Any:
    return await host.http("POST", "/tools/invoke", body, **more)


async def test_a_tool_is_called_in_a_session_and_gives_its_result(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, tools=(tool("count"),)) as host:
        answer = await invoke(host, {"tool": "count", "args": {"number": 3}, "sessionKey": "work"})
        assert answer.status == 200
        assert answer.body == {"ok": True, "result": {"content": [{"type": "text", "text": "3 in agent:main:work"}]}}
        assert (await invoke(host, {"name": "count"})).body["result"]["content"][0]["text"] == "1 in agent:main:main"
        listed = await invoke(host, {"tool": "sessions_list"})
        assert listed.body["result"]["details"]["count"] == 0


async def test_the_owner_may_let_agents_work_and_a_key_that_comes_again_is_the_same_call(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        spawn = {"tool": "sessions_spawn", "args": {"task": "SAY:done"}}
        assert (await invoke(host, spawn)).body["result"]["details"]["reply"] == "done"
        args = {"sessionKey": "main", "message": "SAY:hi"}
        send = {"tool": "sessions_send", "args": args, "sessionKey": "work", "idempotencyKey": "k"}
        first, again = await invoke(host, send), await invoke(host, send)
        assert first.body == again.body
        assert first.body["result"]["details"]["reply"] == "hi"
        assert len(host.model.requests) == 2


async def test_commands_and_writes_of_files_are_not_there_however_they_are_called(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, tools=tuple(map(tool, sorted(DENIED - {"write", "edit"})))) as host:
        for name in sorted(DENIED):
            answer = await invoke(host, {"tool": name, "args": {"path": "x", "content": "x"}})
            assert answer.status == 404, name
            assert answer.body["ok"] is False
            assert answer.body["error"]["type"] == "not_found"
            assert answer.body["error"]["message"] == f"Tool not available: {name}"
        assert host.faults() == []


async def test_what_the_configuration_denies_agents_is_not_there_either(tmp_path: Path) -> None:
    config = {"tools": {"deny": ["count"]}}
    async with open_test_gateway(tmp_path, config=config, tools=(tool("count"),)) as host:
        assert (await invoke(host, {"tool": "count"})).status == 404


async def test_who_has_only_some_scopes_lets_no_agent_work(tmp_path: Path) -> None:
    config = {"gateway": {"auth": {"mode": "none"}}}
    async with open_test_gateway(tmp_path, config=config, tools=(tool("cron"), tool("count"))) as host:
        for scopes, name, status in (
            ("operator.write", "count", 200),
            ("operator.read", "count", 403),
            ("", "count", 403),
            ("operator.admin", "cron", 200),
            *(("operator.write,operator.read", name, 403) for name in sorted(OWNERS)),
        ):
            headers = {"x-openclaw-scopes": scopes}
            answer = await invoke(host, {"tool": name}, headers=headers, token=None)
            assert answer.status == status, (scopes, name, answer)
            if status == 403:
                assert (answer.body["ok"], answer.body["error"]["type"]) == (False, "forbidden")
                assert answer.body["error"]["message"].startswith("missing scope: operator.")


async def test_a_call_that_fails_says_why_and_a_fault_of_the_tools_own_only_that(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, tools=(tool("count"),), faulty=True) as host:
        wrong = await invoke(host, {"tool": "count", "args": {"number": "many"}})
        assert (wrong.status, wrong.body["error"]["type"]) == (400, "tool_error")
        assert "$.number" in wrong.body["error"]["message"]
        accident = await invoke(host, {"tool": "count", "args": {"number": 13}})
        assert accident.status == 500
        assert accident.body == {"ok": False, "error": {"type": "tool_error", "message": "tool execution failed"}}
        assert (await invoke(host, {})).body["error"]["message"] == "tool required"
        assert (await invoke(host, b"{bad")).status == 400
