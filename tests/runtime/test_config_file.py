import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from triops.agents.model import ModelRef, ModelRequest
from triops.agents.providers.mapping import reply_limit
from triops.runtime.config import Config
from triops.runtime.config_file import LoadedConfig, load_config, parse_json5
from triops.runtime.config_reader import ConfigError
from triops.runtime.endpoints import configured_models
from triops.runtime.paths import Paths
from triops.runtime.secrets import REDACTED, KeyCommand, Secret

TOKEN = "a-token-of-many-characters"

STORY = """{
  // what a user of LM Studio has
  models: {
    mode: "merge",
    providers: {
      "lmstudio-anthropic": {
        api: "anthropic-messages",
        baseUrl: "http://127.0.0.1:1234",
        apiKey: "lmstudio",
        models: [{
          id: "qwen/qwen3.5-9b", name: "Qwen", reasoning: false, input: ["text"],
          cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
          contextWindow: 190000, maxTokens: 262144,
        }],
      },
    },
  },
  agents: { defaults: {
    model: { primary: "lmstudio-anthropic/qwen/qwen3.5-9b" },
    models: { "lmstudio-anthropic/qwen/qwen3.5-9b": { alias: "qwen" } },
  } },
}"""

Load = Callable[..., LoadedConfig]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "triops.json")


@pytest.fixture
def load(paths: Paths) -> Load:
    def load(text: str | bytes, **environ: str) -> LoadedConfig:
        paths.config.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config(paths, environ)

    return load


def warnings(loaded: LoadedConfig) -> list[str]:
    return [str(notice) for notice in loaded.warnings if notice.level == "warning"]


def faults(load: Load, text: str | bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    assert all(str(fault) in str(caught.value) for fault in caught.value.faults)
    return [str(fault) for fault in caught.value.faults]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_without_a_file_the_defaults_hold(paths: Paths):
    assert load_config(paths, {}) == LoadedConfig(Config())


def test_a_file_that_was_named_and_is_missing_is_said(paths: Paths):
    loaded = load_config(paths, {"TRIOPS_CONFIG_PATH": str(paths.config)})
    assert not loaded.exists and str(paths.config) in warnings(loaded)[0]


def test_the_users_file_of_the_story_loads_and_says_what_was_cut_down(load: Load):
    loaded = load(STORY)
    assert warnings(loaded) == [
        "models.providers.lmstudio-anthropic.models[0].maxTokens: 262144 of qwen/qwen3.5-9b is more than its "
        "contextWindow 190000; a request asks for at most 95000, half of the window"
    ]
    ref = ModelRef.parse("lmstudio-anthropic/qwen/qwen3.5-9b")
    info = configured_models(loaded.config)[ref]
    assert (info.api, info.context_window, info.max_tokens) == ("anthropic-messages", 190000, 190000)
    defaults = loaded.config.agents.defaults
    assert defaults.model.primary == str(ref)
    assert defaults.models[str(ref)].alias == "qwen"
    assert loaded.config.models.providers["lmstudio-anthropic"].api_key == Secret("lmstudio")


def test_what_was_read_is_kept_as_it_was_written(load: Load):
    text = "{gateway: {port: 1, auth: {token: '${T}'}}}"
    loaded = load(text, T=TOKEN)
    assert loaded.exists and loaded.raw == text
    assert loaded.parsed == {"gateway": {"port": 1, "auth": {"token": "${T}"}}}
    assert loaded.hash == hashlib.sha256(text.encode()).hexdigest()
    assert loaded.secrets == (Secret(TOKEN),)
    assert TOKEN not in repr(loaded) and TOKEN not in repr(loaded.config)


def test_a_byte_order_mark_is_fine(load: Load):
    assert load(b"\xef\xbb\xbf{gateway: {port: 1}}").config.gateway.port == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not JSON5"),
        ("[]", "does not hold an object"),
        (b"\xff", "is not UTF-8"),
        ("{a: 1\n b: 2}", "line 2, column 2: Expected comma or '}', found 'b'"),
        ("{a: " + "[" * 100, "nesting"),
        ("//" + " " * (2 << 20), "is over 2097152 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_where(load: Load, text: str | bytes, fault: str):
    (said,) = faults(load, text)
    assert said.startswith("the file: ") and fault in said


def test_a_file_that_cannot_be_opened_says_why(paths: Paths):
    paths.config.mkdir()
    with pytest.raises(
        ConfigError, match=re.escape(str(paths.config)) + r" cannot be used:\n  the file: cannot be read"
    ):
        load_config(paths, {})


def test_a_syntax_error_does_not_carry_what_was_read_before_it():
    with pytest.raises(ValueError) as caught:
        parse_json5(f"{{token: '{TOKEN}' x}}")
    assert TOKEN not in repr(caught.value) + repr(caught.value.__cause__)
    assert caught.value.__context__ is None


# -- unknown, unused and impossible ------------------------------------------------------------------------------------


def test_a_fault_is_told_with_the_warnings_that_may_explain_it(load: Load):
    with pytest.raises(ConfigError) as caught:
        load("{models: {providers: {lab: {baseURL: 'http://127.0.0.1:1234/v1'}}}}")
    assert str(caught.value).splitlines()[1:] == [
        '  models.providers.lab.baseUrl: is missing; write one such as "http://127.0.0.1:1234/v1"',
        "  warning: models.providers.lab.baseURL: unknown key, not used; did you mean 'baseUrl'?",
    ]


def test_an_unknown_key_warns_with_its_path_and_the_nearest_name_if_one_is_near(load: Load):
    loaded = load("{gatewai: {}, gateway: {prot: 1}, agents: {defaults: {models: {'a/b': {wobble: 1}}}}}")
    assert warnings(loaded) == [
        "gatewai: unknown key, not used; did you mean 'gateway'?",
        "gateway.prot: unknown key, not used; did you mean 'port'?",
        'agents.defaults.models["a/b"].wobble: unknown key, not used',
    ]
    assert loaded.config == Config(agents=loaded.config.agents)


def test_what_openclaw_has_and_we_do_not_use_is_one_line(load: Load):
    loaded = load(
        """{$schema: "x", meta: {lastTouchedVersion: "1"}, channels: {telegram: {botToken: "x", enabled: "odd"}},
        gateway: {mode: "local", reload: {mode: "hybrid"}, tailscale: {mode: "off", resetOnExit: true}},
        agents: {defaults: {compaction: {mode: "safeguard"}}, entries: {main: {identity: {emoji: "x"}, tts: {}}}},
        session: {dmScope: "main"}, models: {providers: {p: {baseUrl: 'http://x', models: [
          {id: "m", compat: {thinkingFormat: "qwen"}}]}}}}"""
    )
    (notice,) = loaded.warnings
    assert notice.level == "info"
    assert str(notice).startswith("10 settings of OpenClaw are not used here: $schema, meta, channels, gateway.mode")
    assert "models.providers.p.models[0].compat.thinkingFormat" in notice.message


def test_a_limit_that_does_not_hold_here_is_warned_of(load: Load):
    loaded = load("{tools: {profile: 'minimal', deny: ['exec']}, agents: {defaults: {sandbox: {mode: 'all'}}}}")
    assert [warning.split(":")[0] for warning in warnings(loaded)] == ["tools.profile", "agents.defaults.sandbox"]
    assert loaded.config.tools.deny == ("exec",)


def test_retired_and_included_parts_say_what_to_do(load: Load):
    said = warnings(load("{$include: './x', agents: {list: [], $include: './y'}}"))
    assert said[0].startswith("$include: other files are not read")
    assert said[1].startswith("agents.list: is not read any more; write agents.entries")
    assert said[2].startswith("agents.$include: ")


def test_a_value_of_openclaw_that_we_lack_is_read_as_the_nearest(load: Load):
    loaded = load("{gateway: {bind: 'auto'}}")
    assert loaded.config.gateway.bind == "loopback"
    assert warnings(loaded) == ["gateway.bind: 'auto' is not supported and is read as 'loopback'"]


@pytest.mark.parametrize("mode", ["steer", "followup", "collect", "interrupt"])
def test_every_queue_mode_is_known(load: Load, mode: str):
    loaded = load(f"{{messages: {{queue: {{mode: '{mode}'}}}}}}")
    assert loaded.config.messages.queue.mode == mode and not loaded.warnings


def test_a_whole_number_may_be_written_with_an_exponent(load: Load):
    loaded = load("{models: {providers: {p: {baseUrl: 'http://x', models: [{id: 'm', contextWindow: 1.9e5}]}}}}")
    assert loaded.config.models.providers["p"].models[0].context_window == 190_000


def test_every_fault_is_listed_with_path_problem_and_remedy(load: Load):
    said = faults(
        load,
        """{gateway: {port: "high", bind: "tailnet", auth: {mode: "trusted-proxy"}, tailscale: {mode: "serve"}},
        agents: {defaults: {maxConcurrent: 0, timeoutSeconds: Infinity, userTimezone: "Mars/Base",
          heartbeat: {every: "soon"}, model: 5}, entries: {"Bad Id": {}}},
        models: {providers: {"a/b": {timeoutSeconds: -1, baseUrl: "ftp://x",
          models: [{maxTokens: 1.5}, {id: ""}, 3]}, c: []}},
        cron: {enabled: "yes"}, tools: {deny: ["a", 1], allow: "all"}, logging: null,
        messages: {queue: {mode: "loud"}}}""",
    )
    assert said == [
        "gateway.port: expected `int`, got `str`; write a whole number within its bounds",
        "gateway.bind: 'tailnet' is not supported; write one of 'loopback', 'lan', 'custom'",
        "gateway.auth.mode: 'trusted-proxy' is not supported; write one of 'token', 'password', 'none'",
        "gateway.tailscale.mode: 'serve' is not supported; write one of 'off'",
        "agents.defaults.maxConcurrent: expected `int` >= 1; write a whole number within its bounds",
        "agents.defaults.timeoutSeconds: inf is no number; write a finite one",
        "agents.defaults.heartbeat.every: 'soon' is not a length of time; write a number and its unit, such as \"30m\"",
        "agents.defaults.model: expected an object, found a number; write an object",
        'models.providers["a/b"].timeoutSeconds: expected `float` >= 0.0; write a number within its bounds',
        'models.providers["a/b"].models[0].maxTokens: '
        "expected `int`, got `float`; write a whole number within its bounds",
        'models.providers["a/b"].models[0].id: is missing; write it',
        'models.providers["a/b"].models[1].id: expected `str` of length >= 1; write a text in quotes',
        'models.providers["a/b"].models[2]: expected an object, found a number; write an object',
        "models.providers.c: expected an object, found a list; write an object",
        "cron.enabled: expected `bool`, got `str`; write true or false",
        "tools.deny[1]: expected `str`, got `int`; write a text in quotes",
        "tools.allow: expected a list, found a text; write a list",
        "logging: expected an object, found null; write an object",
        "messages.queue.mode: 'loud' is not supported; write one of 'steer', 'followup', 'collect', 'interrupt'",
        'agents.entries["Bad Id"]: is no agent id; use a-z, 0-9, - and _, at most 64, beginning with a letter or digit',
        "agents.defaults.userTimezone: 'Mars/Base' is no time zone; write an IANA name such as \"Europe/Berlin\"",
        'models.providers["a/b"]: is no provider id; use a name without a slash',
        'models.providers["a/b"].baseUrl: is no http(s) URL; write one such as "http://127.0.0.1:1234"',
    ]


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://[x", "http://x:port", "x/v1"])
def test_a_base_url_that_is_none_is_a_fault(load: Load, url: str):
    (said,) = faults(load, f"{{models: {{providers: {{p: {{baseUrl: '{url}'}}}}}}}}")
    assert said.startswith("models.providers.p.baseUrl: is no http(s) URL; ")
    (said,) = faults(load, f"{{diagnostics: {{flags: [], otel: {{endpoint: '{url}', protocol: 'http/protobuf'}}}}}}")
    assert said == 'diagnostics.otel.endpoint: is no http(s) URL; write one such as "http://127.0.0.1:1234"'


def test_a_provider_without_a_base_url_is_a_fault_where_nobody_knows_it(load: Load):
    known = "openai: {}, anthropic: {}, ollama: {}, lmstudio: {}, llamacpp: {}, codex: {}, x: {api: 'codex'}"
    load(f"{{models: {{providers: {{{known}}}}}}}")
    (said,) = faults(load, f"{{models: {{providers: {{{known}, mine: {{api: 'openai-responses'}}}}}}}}")
    assert said == 'models.providers.mine.baseUrl: is missing; write one such as "http://127.0.0.1:1234/v1"'


def test_an_unknown_api_is_warned_of_and_stops_nothing(load: Load):
    models = "models: [{id: 'm', api: 'telepathy'}]"
    loaded = load(f"{{models: {{providers: {{p: {{api: 'google-vertex', {models}}}}}}}}}")
    known = "known: anthropic-messages, codex, ollama, openai-completions, openai-responses, scripted"
    assert warnings(loaded) == [
        f"models.providers.p.api: 'google-vertex' is not supported, so what it serves cannot be asked; {known}",
        f"models.providers.p.models[0].api: 'telepathy' is not supported, so what it serves cannot be asked; {known}",
    ]


def test_ollamas_own_format_is_said_to_be_replaced(load: Load):
    (said,) = warnings(load("{models: {providers: {o: {api: 'ollama', baseUrl: 'http://127.0.0.1:11434'}}}}"))
    assert said.startswith("models.providers.o.api: Ollama is asked in OpenAI's format") and "CONTEXT_LENGTH" in said


@pytest.mark.parametrize(
    ("written", "said", "window", "most", "price"),
    [
        ("contextWindow: 0", "a contextWindow of 0 cannot be; 128000 is used", 128_000, 8_192, 0),
        ("contextWindow: -1, maxTokens: 9", "a contextWindow of -1 cannot be; 128000 is used", 128_000, 9, 0),
        ("contextWindow: 100, maxTokens: -5", "a maxTokens of -5 cannot be; 100 is used", 100, 100, 0),
        ("maxTokens: 0", "a maxTokens of 0 cannot be; 8192 is used", 128_000, 8_192, 0),
        ("cost: {input: -1, output: 2}", "a price below 0 cannot be; 0 is used", 128_000, 8_192, 2),
    ],
)
def test_a_number_that_cannot_be_is_said_and_stops_nothing(
    load: Load, written: str, said: str, window: int, most: int, price: float
):
    loaded = load(f"{{models: {{providers: {{p: {{baseUrl: 'http://x', models: [{{id: 'm', {written}}}]}}}}}}}}")
    assert warnings(loaded) == [f"models.providers.p.models[0]: m: {said}"]
    (info,) = configured_models(loaded.config).values()
    assert (info.context_window, info.max_tokens, info.cost.input, info.cost.output) == (window, most, 0, price)


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (1_001, "1001 of m is more than its contextWindow 1000; a request asks for at most 500, half of the window"),
        (
            501,
            "501 of m is more than half of its contextWindow 1000; a request asks for at most 500, half of the window",
        ),
        (500, None),
    ],
)
def test_what_a_reply_may_have_is_said_as_it_is_asked_for(load: Load, most: int, said: str | None):
    model = f"{{id: 'm', contextWindow: 1000, maxTokens: {most}}}"
    loaded = load(f"{{models: {{providers: {{p: {{baseUrl: 'http://x', models: [{model}]}}}}}}}}")
    assert warnings(loaded) == ([f"models.providers.p.models[0].maxTokens: {said}"] if said else [])
    (info,) = configured_models(loaded.config).values()
    assert reply_limit(ModelRequest(model=info, system="", messages=())) == 500


@pytest.mark.parametrize(
    ("written", "seconds"), [("30m", 1800), ("1h30m", 5400), ("500ms", 0.5), ("0m", 0), ("1.5h", 5400), ("7d", 604800)]
)
def test_lengths_of_time_have_units(load: Load, written: str, seconds: float):
    assert load(f"{{messages: {{queue: {{maxAge: '{written}'}}}}}}").config.messages.queue.max_age == seconds


def test_a_model_may_be_a_plain_text(load: Load):
    defaults = load("{agents: {defaults: {model: 'p/m'}}}").config.agents.defaults
    assert (defaults.model.primary, defaults.model.fallbacks) == ("p/m", ())


@pytest.mark.parametrize(
    ("primary", "warned"),
    [
        ("foo/bar", True),
        ("foo/ollama", True),
        ("ollama/m", False),
        ("lab/m", False),
        ("openai/m", False),
        ("a/b", False),
        ("My/Own", False),
    ],
)
def test_a_default_model_whose_provider_nobody_knows_is_said(load: Load, primary: str, warned: bool):
    loaded = load(
        "{models: {providers: {lab: {baseUrl: 'http://127.0.0.1:1/v1', models: [{id: 'a/b'}]}}}, agents: {defaults: {"
        f"model: {{primary: '{primary}'}}, models: {{'lab/a/b': {{alias: 'my/own'}}}}}}}}}}"
    )
    id = primary.partition("/")[0]
    said = f"agents.defaults.model: {primary!r} has no provider; write models.providers.{id}"
    assert warnings(loaded) == ([said] if warned else [])


def test_a_setting_for_what_is_no_model_is_said(load: Load):
    assert "is no provider/model" in warnings(load("{agents: {defaults: {models: {m: {alias: 'x'}}}}}"))[0]


# -- variables and secrets ---------------------------------------------------------------------------------------------


def test_variables_are_filled_in_and_escapes_are_not(load: Load):
    loaded = load(
        "{models: {providers: {p: {baseUrl: 'http://${HOST}', models: [{id: 'm', params: {a: ['$${X}', '${Y}']}}]}}}}",
        HOST="h",
    )
    provider = loaded.config.models.providers["p"]
    assert provider.base_url == "http://h"
    assert provider.models[0].params == {"a": ["${X}", "${Y}"]}
    assert warnings(loaded) == [
        "models.providers.p.models[0].params.a[1]: the environment has no 'Y'; ${Y} stays as it is"
    ]


def test_variables_of_the_file_stand_behind_those_of_the_process(load: Load):
    text = "{env: {vars: {A: 'file', B: 'file'}}, agents: {entries: {main: {name: '${A} ${B}'}}}}"
    loaded = load(text, A="process")
    assert loaded.config.agents.entries["main"].name == "process file"
    assert loaded.environ == {"A": "process", "B": "file"}
    assert "A" not in os.environ or os.environ["A"] != "file"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("'plain'", "plain"),
        ("'${KEY}'", "value"),
        ("'$${KEY}'", "${KEY}"),
        ("{source: 'env', provider: 'default', id: 'KEY'}", "value"),
        ("''", None),
        ("'${NONE}'", None),
        ("{source: 'env', id: 'NONE'}", None),
        ("{source: 'file', id: '/key'}", None),
        (f"'{REDACTED}'", None),
    ],
)
def test_a_providers_key_is_a_text_or_a_reference_and_stays_unset_if_it_has_no_value(
    load: Load, written: str, expected: str | None
):
    loaded = load(
        f"{{models: {{providers: {{p: {{baseUrl: 'http://x', apiKey: {written}, headers: {{X: {written}}}}}}}}}}}",
        KEY="value",
    )
    provider = loaded.config.models.providers["p"]
    key = provider.api_key
    assert (key and key.reveal()) == expected
    assert {name: header.reveal() for name, header in provider.headers.items()} == ({"X": expected} if expected else {})


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("'${NONE}'", "the environment has no 'NONE'"),
        ("{source: 'env', id: 'NONE'}", "the environment has no 'NONE'"),
        ("{source: 'exec', id: 'x'}", "secrets.providers.default is no source of kind 'exec'"),
        (f"'{REDACTED}'", "not a secret"),
        ("5", "expected a text"),
    ],
)
def test_a_gateway_secret_without_a_value_stops_the_start(load: Load, written: str, why: str):
    assert why in faults(load, f"{{gateway: {{auth: {{token: {written}}}}}}}")[0]


# -- who may connect ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "mode"),
    [
        ("{}", "token"),
        ("{password: '123456789012'}", "password"),
        (f"{{mode: 'token', token: '{TOKEN}', password: '123456789012'}}", "token"),
        ("{mode: 'none'}", "none"),
    ],
)
def test_the_mode_follows_from_what_is_set(load: Load, auth: str, mode: str):
    assert load(f"{{gateway: {{auth: {auth}}}}}").config.gateway.auth.mode == mode


@pytest.mark.parametrize(
    ("gateway", "fault"),
    [
        (f"{{auth: {{token: '{TOKEN}', password: '123456789012'}}}}", "gateway.auth: both a token and a password"),
        ("{auth: {mode: 'password'}}", "gateway.auth.password: is missing"),
        ("{auth: {password: 'short'}}", "gateway.auth.password: can be guessed"),
        ("{bind: 'lan', auth: {mode: 'none'}}", "gateway.auth.mode: without auth, bind 'lan' would let everybody in"),
        ("{bind: 'custom', customBindHost: '10.0.0.1', auth: {mode: 'none'}}", "gateway.auth.mode: without auth"),
        ("{bind: 'custom'}", "gateway.customBindHost: None is no address"),
        ("{bind: 'lan', auth: {token: 'short'}}", "gateway.auth.token: a token under 16 characters can be guessed"),
    ],
)
def test_an_open_door_stops_the_start(load: Load, gateway: str, fault: str):
    assert faults(load, f"{{gateway: {gateway}}}")[0].startswith(fault)


@pytest.mark.parametrize(
    ("hooks", "fault"),
    [
        ("{token: 'short'}", "hooks.token: can be guessed; use 16 characters or more"),
        (f"{{token: '{TOKEN}'}}", "hooks.token: is the gateway's own secret; use another one"),
        ("{token: 'another-secret-of-16', path: '/'}", "hooks.path: is the root; write a path such as /hooks"),
    ],
)
def test_hooks_that_would_let_others_in_stop_the_start(load: Load, hooks: str, fault: str):
    hooks = f"{{enabled: true, {hooks[1:]}"
    assert faults(load, f"{{gateway: {{auth: {{token: '{TOKEN}'}}}}, hooks: {hooks}}}") == [fault]


def test_hooks_without_a_secret_are_warned_of(load: Load):
    assert warnings(load("{hooks: {enabled: true}}")) == ["hooks.token: is missing, so that there are no hooks"]


def test_a_bind_that_other_machines_reach_is_said(load: Load):
    (said,) = warnings(load("{gateway: {bind: 'lan'}}"))
    assert said.startswith("gateway.bind: other machines can reach this gateway")


def test_no_auth_is_fine_on_this_machine_only(load: Load):
    loaded = load("{gateway: {bind: 'custom', customBindHost: '::1', auth: {mode: 'none'}}}")
    assert loaded.config.gateway.host == "::1"


def test_a_short_token_is_warned_of_on_this_machine(load: Load):
    assert warnings(load("{gateway: {auth: {token: 'short'}}}"))[0].startswith("gateway.auth.token: a token under 16")


def test_origins_are_normalised_and_what_is_none_is_left_out_with_a_warning(load: Load):
    loaded = load("{gateway: {controlUi: {allowedOrigins: ['HTTPS://Ui.example/', '*', 'null', 'tauri://localhost']}}}")
    assert loaded.config.gateway.control_ui.allowed_origins == ("https://ui.example", "tauri://localhost")
    assert [warning.split(":")[0] for warning in warnings(loaded)] == [
        "gateway.controlUi.allowedOrigins[1]",
        "gateway.controlUi.allowedOrigins[2]",
    ]


@pytest.mark.parametrize("prefix", ["TRIOPS", "OPENCLAW"])
def test_the_environment_stands_over_the_file(load: Load, prefix: str):
    loaded = load(
        "{gateway: {port: 1, auth: {token: 'of the file, long enough'}}}",
        **{f"{prefix}_GATEWAY_PORT": "2", f"{prefix}_GATEWAY_TOKEN": TOKEN},
    )
    assert loaded.config.gateway.port == 2
    assert loaded.config.gateway.auth.token == Secret(TOKEN)
    assert Secret(TOKEN) in loaded.secrets
    assert load("{}", **{f"{prefix}_GATEWAY_PASSWORD": "123456789012"}).config.gateway.auth.mode == "password"


def test_our_own_variable_stands_over_openclaws_and_an_empty_one_is_none(load: Load):
    loaded = load("{}", TRIOPS_GATEWAY_PORT="1", OPENCLAW_GATEWAY_PORT="2", TRIOPS_GATEWAY_TOKEN=" ")
    assert loaded.config.gateway.port == 1
    assert loaded.config.gateway.auth.token is None


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1.5", "²"])
def test_a_port_of_the_environment_that_is_none_stops_the_start(load: Load, port: str):
    assert faults(load, "{}", OPENCLAW_GATEWAY_PORT=port)[0].startswith("OPENCLAW_GATEWAY_PORT: ")


def test_secrets_lie_in_files_as_they_do_in_openclaw(load: Load, tmp_path: Path):
    vault, alone = tmp_path / "vault.json", tmp_path / "alone"
    vault.write_text('{"lab": {"a/b": ["first", "sec-of-the-vault"]}, "n": 3}')
    alone.write_text("sec-that-is-alone\n")

    def key(ref: str) -> tuple[str | None, list[str]]:
        single = f"{{source: 'file', path: '{alone}', mode: 'singleValue'}}"
        sources = f"{{vault: {{source: 'file', path: '{vault}'}}, alone: {single}}}"
        provider = f"{{baseUrl: 'http://x', apiKey: {ref}}}"
        loaded = load(f"{{models: {{providers: {{p: {provider}}}}}, secrets: {{providers: {sources}}}}}")
        secret = loaded.config.models.providers["p"].api_key
        assert "sec-" not in repr(loaded.warnings)
        return (secret.reveal() if secret else None), warnings(loaded)

    assert key("{source: 'file', provider: 'vault', id: '/lab/a~1b/1'}") == ("sec-of-the-vault", [])
    assert key("{source: 'file', provider: 'alone', id: '/'}") == ("sec-that-is-alone", [])
    for ref, said in [
        ("{source: 'file', provider: 'vault', id: '/lab/none'}", f"{vault}: has nothing at '/lab/none'"),
        ("{source: 'file', provider: 'vault', id: '/n'}", f"{vault}: has no text at '/n'"),
        ("{source: 'exec', provider: 'vault', id: 'x'}", "secrets.providers.vault is no source of kind 'exec'"),
    ]:
        value, (told,) = key(ref)
        assert value is None and told == f"models.providers.p.apiKey: {said}; it stays unset"
    alone.unlink()
    assert f"there is no file {alone}" in key("{source: 'file', provider: 'alone', id: '/'}")[1][0]


def test_a_command_says_keys_of_providers_only_and_stands_by_its_whole_path(load: Load):
    op = "{source: 'exec', command: '/bin/op', args: ['read']}"
    sources = f"{{providers: {{op: {op}, near: {{source: 'exec', command: 'op'}}}}}}"

    def loaded(more: str) -> LoadedConfig:
        return load(f"{{secrets: {sources}, {more}}}")

    ref = "{source: 'exec', provider: 'op', id: 'x'}"
    command = loaded(f"models: {{providers: {{p: {{baseUrl: 'http://x', apiKey: {ref}}}}}}}").config.models.providers[
        "p"
    ]
    assert isinstance(command.api_key, KeyCommand) and command.api_key.argv == ("/bin/op", "read")
    with pytest.raises(ConfigError, match=r"gateway.auth.token: a command says the keys of providers only"):
        loaded(f"gateway: {{auth: {{token: {ref}}}}}")
    (told,) = warnings(
        loaded(f"models: {{providers: {{p: {{baseUrl: 'http://x', apiKey: {ref.replace('op', 'near')}}}}}}}")
    )
    assert "secrets.providers.near.command is no absolute path" in told
