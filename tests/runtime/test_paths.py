import os
import stat
import sys
from pathlib import Path

import pytest

from triops.runtime.paths import (
    Paths,
    StateError,
    locate,
    open_private,
    prepare_state,
    private_folder,
    replace_private,
    write_new,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no modes on Windows")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return locate({"TRIOPS_STATE_DIR": str(tmp_path / "state")})


def test_state_lies_in_the_home_folder_unless_the_environment_says_otherwise(tmp_path: Path):
    home = locate({})
    assert home.state == Path.home() / ".triops"
    assert home.config == home.state / "triops.json"
    elsewhere = locate({"TRIOPS_STATE_DIR": str(tmp_path / "s"), "TRIOPS_CONFIG_PATH": "~/c.json"})
    assert elsewhere.database == tmp_path / "s" / "triops.sqlite"
    assert elsewhere.config == Path.home() / "c.json"


def test_an_empty_variable_counts_as_unset():
    assert locate({"TRIOPS_STATE_DIR": "", "TRIOPS_CONFIG_PATH": ""}) == locate({})


def test_a_relative_folder_is_made_absolute():
    assert locate({"TRIOPS_STATE_DIR": "x"}).state == Path.cwd() / "x"


@posix
def test_folders_are_made_for_this_user_only_whatever_the_umask(paths: Paths):
    before = os.umask(0)
    try:
        assert prepare_state(paths) == ()
    finally:
        os.umask(before)
    assert mode(paths.state) == mode(paths.logs) == 0o700


@posix
def test_wider_modes_are_narrowed_with_a_warning_each(paths: Paths):
    paths.state.mkdir(mode=0o755)
    for file in (paths.token, paths.config, paths.database):
        file.touch()
        file.chmod(0o644)
    warnings = prepare_state(paths)
    assert [warning.split()[0] for warning in warnings] == [
        str(paths.state),
        str(paths.token),
        str(paths.database),
        str(paths.config),
    ]
    assert "0644" in warnings[1] and "0600" in warnings[1]
    assert mode(paths.state) == 0o700
    assert {mode(file) for file in (paths.token, paths.config, paths.database)} == {0o600}
    assert prepare_state(paths) == ()


@posix
def test_narrowing_takes_rights_and_gives_none(paths: Paths):
    prepare_state(paths)
    paths.config.touch()
    paths.config.chmod(0o444)
    prepare_state(paths)
    assert mode(paths.config) == 0o400


@posix
def test_a_folder_of_another_user_is_refused_and_says_whose_it_is(tmp_path: Path):
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
        foreign, owner = tmp_path, 12345
    else:
        foreign, owner = Path("/usr"), 0
    with pytest.raises(StateError, match=rf"{foreign} belongs to user id {owner}.*chown"):
        private_folder(foreign)


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path: Path):
    (tmp_path / "state").touch()
    with pytest.raises(StateError, match="is not a folder"):
        private_folder(tmp_path / "state")


@posix
def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="Not a directory"):
        private_folder(tmp_path / "file" / "state")


def test_a_new_file_appears_whole_and_only_once(tmp_path: Path):
    file = tmp_path / "token"
    assert write_new(file, b"one")
    assert not write_new(file, b"two")
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_replaced_file_leaves_nothing_behind(tmp_path: Path):
    file = tmp_path / "gateway.json"
    replace_private(file, b"one")
    replace_private(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [file]


@posix
def test_files_are_private_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        write_new(tmp_path / "a", b"")
        replace_private(tmp_path / "b", b"")
        os.close(open_private(tmp_path / "c", os.O_RDWR))
    finally:
        os.umask(before)
    assert {mode(tmp_path / name) for name in "abc"} == {0o600}


@posix
def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path):
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StateError, match="cannot open"):
        open_private(tmp_path / "lock", os.O_RDWR)
    assert not (tmp_path / "victim").exists()


def test_writing_into_a_missing_folder_names_the_file(tmp_path: Path):
    with pytest.raises(StateError, match=r"cannot .*token"):
        write_new(tmp_path / "missing" / "token", b"")
