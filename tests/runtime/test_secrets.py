import copy
import json
import pickle
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import msgspec
import pytest

from triops.runtime.paths import Paths, StateError, locate, prepare_state
from triops.runtime.secrets import REDACTED, Secret, hide_secret, load_or_create_token, read_token

VALUE = "canary-1f7a9c"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = locate({"TRIOPS_STATE_DIR": str(tmp_path / "state")})
    prepare_state(paths)
    return paths


def test_a_secret_shows_itself_nowhere():
    class Holder(msgspec.Struct):
        key: Secret

    secret = Secret(VALUE)
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", repr([secret]), repr(Holder(secret))]
    assert all(VALUE not in text and REDACTED in text for text in shown)
    assert msgspec.json.encode(Holder(secret), enc_hook=hide_secret) == f'{{"key":"{REDACTED}"}}'.encode()


def test_encoders_that_do_not_know_of_secrets_refuse_them():
    secret = Secret(VALUE)
    for encode in (msgspec.json.encode, json.dumps, pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError) as caught:
            encode(secret)
        assert VALUE not in str(caught.value)


def test_the_hook_for_secrets_refuses_what_is_none():
    with pytest.raises(NotImplementedError):
        hide_secret(object())


def test_only_the_whole_value_matches():
    secret = Secret(VALUE)
    assert secret.matches(VALUE)
    assert secret.reveal() == VALUE
    for wrong in ("", VALUE[:-1], VALUE + " ", VALUE.upper(), "\ud800", REDACTED):
        assert not secret.matches(wrong)


def test_secrets_compare_by_value_and_with_secrets_only():
    assert Secret("a") == Secret("a") and hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_the_first_start_makes_a_token_of_256_bits_and_later_ones_keep_it(paths: Paths):
    assert read_token(paths) is None
    token = load_or_create_token(paths)
    assert len(token.reveal()) == 43  # 32 bytes in base64
    assert load_or_create_token(paths) == token == read_token(paths)
    if sys.platform != "win32":
        assert stat.S_IMODE(paths.token.stat().st_mode) == 0o600


def test_two_state_folders_have_two_tokens(tmp_path: Path):
    tokens: list[Secret] = []
    for name in ("a", "b"):
        paths = locate({"TRIOPS_STATE_DIR": str(tmp_path / name)})
        prepare_state(paths)
        tokens.append(load_or_create_token(paths))
    assert tokens[0] != tokens[1]


def test_who_races_for_the_token_gets_the_same_one(paths: Paths):
    barrier = Barrier(8)

    def start(_: int) -> Secret:
        barrier.wait(5)
        return load_or_create_token(paths)

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(start, range(8)))
        assert set(tokens) == {read_token(paths)}
        assert sorted(path.name for path in paths.state.iterdir()) == ["gateway.token", "logs"]
        paths.token.unlink()


def test_a_token_that_a_user_wrote_is_taken_without_its_line_end(paths: Paths):
    paths.token.write_text("my own token\n")
    assert load_or_create_token(paths).matches("my own token")


def test_an_empty_token_file_says_what_to_do(paths: Paths):
    paths.token.write_text("\n")
    with pytest.raises(StateError, match="is empty; delete it"):
        load_or_create_token(paths)


def test_a_token_file_that_is_no_text_is_a_clear_error(paths: Paths):
    paths.token.write_bytes(b"\xff\xfe")
    with pytest.raises(StateError, match="cannot read the gateway token"):
        read_token(paths)
