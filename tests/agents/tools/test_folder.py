import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.errors import ToolError
from triops.agents.tools.folder import Enter, Folder, Place, resolve, walk

SECRET = b"the secret outside"
MAX = 1_000
WALKS = os.open in os.supports_dir_fd
ENTERS = [walk, resolve] if WALKS else [resolve]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a secret, beside the workspace."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_bytes(SECRET)
    return outside


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    """A workspace with files, folders and every kind of link out of it."""
    root = tmp_path / "workspace"
    (root / "notes" / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"inside a")
    (root / "notes" / "b.txt").write_bytes(b"inside b")
    try:
        (root / "file-link").symlink_to(outside / "secret.txt")
    except OSError:
        pytest.skip("links need a privilege on this system")
    (root / "folder-link").symlink_to(outside, target_is_directory=True)
    (root / "notes" / "up").symlink_to("../../outside", target_is_directory=True)
    (root / "inner-link").symlink_to("a.txt")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to(outside / "new.txt")
    return root


@pytest.fixture(params=ENTERS, ids=lambda enter: enter.__name__)
def folder(request: pytest.FixtureRequest, root: Path) -> Folder:
    return Folder(root, enter=request.param)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_inside_are_read_by_relative_and_by_absolute_path(folder: Folder, root: Path):
    assert folder.read("a.txt", at_most=MAX) == (b"inside a", 8)
    assert folder.read("notes/b.txt", at_most=MAX) == (b"inside b", 8)
    assert folder.read("notes/../notes/./b.txt", at_most=MAX) == (b"inside b", 8)
    assert folder.read(str(root / "notes" / "b.txt"), at_most=6) == (b"inside", 8)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        ".",
        "",
        "../outside/secret.txt",
        "notes/../../outside/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "~/x",
        "a\0b",
    ],
)
def test_paths_that_lead_out_are_refused(folder: Folder, path: str):
    with pytest.raises(ToolError, match="outside the workspace"):
        folder.read(path, at_most=MAX)
    with pytest.raises(ToolError, match="outside the workspace"):
        folder.write(path, b"x")


def test_a_sibling_whose_name_begins_alike_is_outside(folder: Folder, root: Path):
    twin = root.with_name("workspace2")
    twin.mkdir()
    (twin / "x").write_bytes(SECRET)
    with pytest.raises(ToolError, match="outside"):
        folder.read(str(twin / "x"), at_most=MAX)


@pytest.mark.parametrize(
    "path", ["file-link", "folder-link/secret.txt", "notes/up/secret.txt", "inner-link", "loop", "loop/x", "dangling"]
)
def test_links_are_not_followed_not_even_inside(folder: Folder, outside: Path, root: Path, path: str):
    with pytest.raises(ToolError, match="link"):
        folder.read(path, at_most=MAX)
    with pytest.raises(ToolError, match="link"):
        folder.write(path, b"x")
    with pytest.raises(ToolError, match="link"):
        folder.write("folder-link/sub/new.txt", b"x")
    assert listing(outside) == {"secret.txt": SECRET}
    assert (root / "a.txt").read_bytes() == b"inside a"


def test_a_file_of_several_names_is_read_and_writing_changes_this_name_alone(folder: Folder, outside: Path, root: Path):
    (root / "twin").hardlink_to(outside / "secret.txt")
    assert folder.read("twin", at_most=MAX) == (SECRET, len(SECRET))
    folder.write("twin", b"new")
    assert (root / "twin").read_bytes() == b"new"
    assert listing(outside) == {"secret.txt": SECRET}


def test_a_workspace_that_is_gone_has_no_files_and_is_made_by_writing(folder: Folder, root: Path):
    shutil.rmtree(root)
    with pytest.raises(ToolError, match="File not found"):
        folder.read("a.txt", at_most=MAX)
    assert not root.exists()
    folder.write("notes/a.txt", b"again")
    assert folder.read("notes/a.txt", at_most=MAX) == (b"again", 5)


def test_a_workspace_that_became_a_file_is_said_so(folder: Folder, root: Path):
    shutil.rmtree(root)
    root.touch()
    with pytest.raises(ToolError):
        folder.read("a.txt", at_most=MAX)
    with pytest.raises(ToolError, match=re.escape(str(root))):
        folder.write("a.txt", b"x")


def test_a_workspace_that_is_a_link_itself_is_the_users_choice(root: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    for enter in ENTERS:
        folder = Folder(tmp_path / "alias", enter=enter)
        assert folder.read("notes/b.txt", at_most=MAX) == (b"inside b", 8)
        folder.write("notes/c.txt", b"c")
        assert (root / "notes" / "c.txt").read_bytes() == b"c"


def test_folders_are_no_files_and_files_no_folders(folder: Folder, root: Path):
    for call in (lambda: folder.read("notes", at_most=MAX), lambda: folder.write("notes", b"x")):
        with pytest.raises(ToolError, match="folder"):
            call()
    for call in (lambda: folder.read("a.txt/b", at_most=MAX), lambda: folder.write("a.txt/b/c", b"x")):
        with pytest.raises(ToolError, match=r"a\.txt"):
            call()
    assert (root / "a.txt").read_bytes() == b"inside a"


def test_what_is_missing_is_said_with_its_whole_path(folder: Folder, root: Path):
    for path in ("nothing.txt", "no/such/folder.txt"):
        with pytest.raises(ToolError) as caught:
            folder.read(path, at_most=MAX)
        assert str(caught.value) == f"File not found: {root / path}."
    assert not (root / "no").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files in folders")
def test_pipes_and_devices_are_refused_at_once(folder: Folder, root: Path):
    os.mkfifo(root / "pipe")
    with pytest.raises(ToolError, match="Not a regular file"):
        folder.read("pipe", at_most=MAX)
    with pytest.raises(ToolError, match="Not a regular file"):
        folder.write("pipe", b"x")
    with pytest.raises(ToolError, match="Not a regular file"):
        Folder(Path("/dev")).read("null", at_most=MAX)


def test_writing_makes_folders_and_leaves_nothing_else(folder: Folder, root: Path):
    folder.write("new/deep/c.txt", b"fresh")
    folder.write("new/deep/c.txt", b"again")
    assert listing(root / "new" / "deep") == {"c.txt": b"again"}


@pytest.mark.skipif(not WALKS, reason="Windows has no such modes")
def test_the_mode_of_a_file_is_kept_and_a_read_only_one_is_not_replaced(root: Path):
    folder = Folder(root)
    file = root / "a.txt"
    for mode in (0o600, 0o666, 0o755):
        file.chmod(mode)
        folder.write("a.txt", b"x")
        assert stat.S_IMODE(file.stat().st_mode) == mode
    file.chmod(0o444)
    with pytest.raises(ToolError, match="Permission denied"):
        folder.write("a.txt", b"y")
    assert file.read_bytes() == b"x"


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(
    folder: Folder, root: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the one place where a full disk can be played
    with pytest.raises(ToolError, match="No space left on device"):
        folder.write("notes/b.txt", b"x")
    assert listing(root / "notes" / "deep") == {}
    assert (root / "notes" / "b.txt").read_bytes() == b"inside b"
    assert sorted(path.name for path in (root / "notes").iterdir()) == ["b.txt", "deep", "up"]


def test_a_colon_is_refused_where_it_would_name_a_stream_or_a_drive(root: Path):
    with pytest.raises(ToolError, match="colon"):
        Folder(root, enter=resolve).write("C:/x/y.txt", b"x")


NAME = st.sampled_from(
    [
        "..",
        ".",
        "",
        "~",
        "notes",
        "deep",
        "up",
        "a.txt",
        "file-link",
        "folder-link",
        "loop",
        "outside",
        "secret.txt",
        "x",
    ]
)
PATHS = st.tuples(
    st.sampled_from(["", "/", "//", "./", "ROOT/", "OUTSIDE/"]), st.lists(NAME | st.text(max_size=3), max_size=6)
)


@pytest.mark.slow
@pytest.mark.parametrize("enter", ENTERS, ids=lambda enter: enter.__name__)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(path=PATHS)
def test_no_path_reads_or_writes_outside(
    root: Path, outside: Path, tmp_path: Path, enter: Enter, path: tuple[str, list[str]]
):
    start, parts = path
    text = start.replace("ROOT", str(root)).replace("OUTSIDE", str(outside)) + "/".join(parts)
    folder = Folder(root, enter=enter)
    try:
        assert folder.read(text, at_most=MAX)[0] != SECRET
    except ToolError:
        pass
    try:
        folder.write(text, b"inside a")
    except ToolError:
        pass
    assert listing(outside) == {"secret.txt": SECRET}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside", "workspace"]


def swap(victim: Path, link: Path) -> None:
    """Put `link` where `victim` is, and the other way round."""
    spare = victim.with_name("spare")
    os.rename(victim, spare)
    os.rename(link, victim)
    os.rename(spare, link)


class Interrupted(Place, frozen=True):
    """Calls `meanwhile` in between the look at a file and its opening."""

    meanwhile: Callable[[], None]

    def status(self, name: str) -> os.stat_result | None:
        found = super().status(name)
        self.meanwhile()
        return found


@pytest.mark.parametrize("enter", ENTERS, ids=lambda enter: enter.__name__)
@pytest.mark.parametrize("victim", ["notes", "notes/b.txt"])
def test_a_link_swapped_in_between_check_and_use_leads_nowhere(root: Path, outside: Path, enter: Enter, victim: str):
    (outside / "b.txt").write_bytes(SECRET)
    link = root / "notes-link"
    link.symlink_to(outside if victim == "notes" else outside / "b.txt")

    @contextmanager
    def interrupted(base: str, parts: Sequence[str], create: bool) -> Generator[Place]:
        with enter(base, parts, create) as place:
            yield Interrupted(place.prefix, place.fd, place.verify, lambda: swap(root / victim, link))

    folder = Folder(root, enter=interrupted)
    for act in (lambda: folder.read("notes/b.txt", at_most=MAX)[0], lambda: folder.write("notes/b.txt", b"x")):
        with suppress(ToolError):
            assert act() != SECRET
        assert listing(outside) == {"secret.txt": SECRET, "b.txt": SECRET}
        if link.is_symlink():
            continue  # a write replaced the link that was swapped in, not what it led to
        swap(root / victim, link)


@pytest.mark.slow
@pytest.mark.skipif(not WALKS, reason="promised where files are opened relative to folders")
@pytest.mark.parametrize("victim", ["notes", "notes/b.txt"])
def test_a_race_of_links_against_opens_never_gets_out(root: Path, outside: Path, victim: str):
    (outside / "b.txt").write_bytes(SECRET)
    link = root / "notes-link"
    link.symlink_to(outside if victim == "notes" else outside / "b.txt")
    folder = Folder(root)
    over = threading.Event()

    def race() -> None:
        while not over.is_set():
            with suppress(OSError):  # a write may have put a file in the way
                swap(root / victim, link)

    racer = threading.Thread(target=race)
    racer.start()
    try:
        for round in range(500):
            with suppress(ToolError):
                assert folder.read("notes/b.txt", at_most=MAX)[0] != SECRET
            if round % 10 == 0:
                with suppress(ToolError):
                    folder.write("notes/b.txt", b"inside b")
    finally:
        over.set()
        racer.join()
    assert listing(outside) == {"secret.txt": SECRET, "b.txt": SECRET}
