"""Stops a build from a checkout whose links to the floors are gone; everything else stands in pyproject.toml."""

import sys
from pathlib import Path

FLOORS = ("agents", "runtime", "gateway", "bench")
RESTORE = "git config core.symlinks true && git checkout -- src/triops"


def lost_links(root: Path) -> str:
    """What to say when `src/triops/<floor>` is no folder (Git on Windows writes a small text file); else nothing."""
    lost = [f"src/triops/{floor}" for floor in FLOORS if not (root / "src" / "triops" / floor).is_dir()]
    return f"These are not links to their folders: {', '.join(lost)}. Restore them: {RESTORE}" if lost else ""


if __name__ == "__main__":  # as a build runs it; dev.py imports the check alone
    if problem := lost_links(Path(__file__).resolve().parent):
        sys.exit(problem)

    from setuptools import setup

    setup()
