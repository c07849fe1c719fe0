import os
from pathlib import Path

import pytest

from triops.agents.workspace import MAX_CHARACTERS, MAX_USER_CHARACTERS, Workspace


def write(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text, encoding="utf-8")


def test_files_come_in_their_order_and_blank_or_missing_ones_are_left_out(tmp_path: Path):
    for name, text in {"USER.md": "me", "AGENTS.md": "\ufeffrules\n", "SOUL.md": " \n", "other.md": "x"}.items():
        write(tmp_path, name, text)
    snapshot = Workspace(tmp_path).snapshot()
    assert [(file.name, file.text) for file in snapshot.files] == [("AGENTS.md", "rules"), ("USER.md", "me")]
    assert (snapshot.root, snapshot.left_out) == (str(tmp_path), ())


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path):
    assert Workspace(tmp_path / "none").snapshot().files == ()


def test_an_unchanged_workspace_is_not_read_again(tmp_path: Path):
    write(tmp_path, "SOUL.md", "calm")
    workspace = Workspace(tmp_path)
    assert workspace.kept() is None, "nothing was read yet"
    first = workspace.snapshot()
    assert workspace.kept() is first
    assert workspace.snapshot() is first


def test_each_kind_of_change_is_seen(tmp_path: Path):
    workspace = Workspace(tmp_path)
    seen = [workspace.snapshot()]

    def changed() -> str:
        assert workspace.kept() is None
        seen.append(workspace.snapshot())
        assert workspace.kept() is seen[-1]
        return "|".join(f"{file.name}:{file.text}" for file in seen[-1].files)

    write(tmp_path, "SOUL.md", "calm")
    assert changed() == "SOUL.md:calm"
    write(tmp_path, "SOUL.md", "calmer")
    assert changed() == "SOUL.md:calmer"
    write(tmp_path, "new", "wilder")  # same size, and the same time: replaced as the tools replace
    status = (tmp_path / "SOUL.md").stat()
    os.utime(tmp_path / "new", ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "new", tmp_path / "SOUL.md")
    assert changed() == "SOUL.md:wilder"
    (tmp_path / "SOUL.md").unlink()
    assert changed() == ""
    assert len({snapshot.revision for snapshot in seen}) == 4, "blank before, blank again"


def test_long_files_are_cut_at_their_limit_and_say_so(tmp_path: Path):
    write(tmp_path, "AGENTS.md", "語" * (MAX_CHARACTERS + 1))
    write(tmp_path, "USER.md", "u" * 100_000)
    write(tmp_path, "MEMORY.md", "m" * MAX_CHARACTERS)
    agents, user, memory = Workspace(tmp_path).snapshot().files
    assert agents.text.startswith("語" * MAX_CHARACTERS + "\n[cut")
    assert user.text.startswith("u" * MAX_USER_CHARACTERS + "\n[cut")
    assert memory.text == "m" * MAX_CHARACTERS
    assert [line.partition(":")[0] for line in Workspace(tmp_path).snapshot().left_out] == ["AGENTS.md", "USER.md"]


def test_what_is_not_utf_8_is_read_as_well_as_it_goes(tmp_path: Path):
    (tmp_path / "SOUL.md").write_bytes(b"caf\xe9 noir")
    assert Workspace(tmp_path).snapshot().files[0].text == "caf\ufffd noir"


def test_a_link_or_a_folder_in_place_of_a_file_is_left_out_with_the_reason(tmp_path: Path):
    root = tmp_path / "workspace"
    (root / "USER.md").mkdir(parents=True)
    write(tmp_path, "private", "secret")
    write(root, "SOUL.md", "calm")
    try:
        (root / "AGENTS.md").symlink_to(tmp_path / "private")
    except OSError:
        pytest.skip("links need a privilege on this system")
    snapshot = Workspace(root).snapshot()
    assert [file.text for file in snapshot.files] == ["calm"]
    assert ["link" in snapshot.left_out[0], "folder" in snapshot.left_out[1]] == [True, True]
