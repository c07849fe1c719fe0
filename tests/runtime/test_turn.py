"""What one turn makes of models that fail."""

from pathlib import Path

from triops.agents.errors import ProviderError
from triops.testing import open_test_runtime


async def test_the_error_of_the_last_model_names_those_of_the_models_before_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    config = {"agents": {"defaults": {"model": {"primary": "scripted/echo", "fallbacks": ["nowhere/m"]}}}}
    async with open_test_runtime(tmp_path, script=[[ProviderError("auth", "the key is old")]], config=config) as host:
        ended = await host.ask("hi")
        assert ended.error_message is not None
        assert ended.error_message.startswith("unknown model 'nowhere/m'")
        assert ended.error_message.endswith("; before it, the key is old")
