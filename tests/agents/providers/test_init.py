import subprocess
import sys

import pytest

from triops.agents.providers import APIS, open_provider


@pytest.mark.parametrize("api", APIS)
async def test_every_api_opens_from_the_same_settings(http, api):
    settings = {
        "base_url": "http://127.0.0.1:1",
        "headers": {},
        "idle": 5.0,
        "api_key": "k",
        "bearer": False,
        "key_hint": "K",
    }
    provider = open_provider(api, id="mine", http=http, discover=False, now=lambda: 1, **settings)
    assert provider.id == "mine"
    assert await provider.resolve_dynamic("x") is None if api != "codex" else await provider.discover() == ()


def test_an_unknown_api_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'telepathy'; known: anthropic-messages, codex, ollama, openai-completions,"):
        open_provider("telepathy")


def test_a_setting_that_nobody_knows_is_an_error():
    with pytest.raises(TypeError):
        open_provider("scripted", colour="red")


def test_providers_are_imported_when_they_are_opened():
    code = (
        "import sys; from triops.agents.providers import open_provider; before = set(sys.modules); "
        "assert not [m for m in before if m.startswith('triops.agents.providers.')], before; "
        "open_provider('scripted'); assert 'triops.agents.providers.codex' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
