from pathlib import Path

from triops.agents.messages import ToolResultMessage
from triops.agents.providers.scripted import TextDelta, ToolCallDelta
from triops.testing import open_test_runtime


async def test_a_sub_agent_is_not_started_without_a_task(tmp_path: Path, autojump_clock: object) -> None:
    script = [[ToolCallDelta("c", "sessions_spawn", '{"task": " "}')], [TextDelta("Oh")]]
    async with open_test_runtime(tmp_path, script=script) as host:
        await host.ask("hi")
        results = [said for said in await host.transcript() if isinstance(said, ToolResultMessage)]
        assert [(result.is_error, "task is empty" in str(result)) for result in results] == [(True, True)]
