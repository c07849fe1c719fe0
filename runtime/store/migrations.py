"""From an older state to this one. Forward only: a newer state than ours is refused, never touched."""

from importlib import resources

from triops.runtime.errors import Unavailable
from triops.runtime.store.db import Db

_STEPS = (
    "ALTER TABLE sessions ADD COLUMN summary_seq INTEGER NOT NULL DEFAULT 0;"
    " ALTER TABLE sessions ADD COLUMN kept_seq INTEGER NOT NULL DEFAULT 0;",
)
"""From version 1, which `schema.sql` makes, to 2, and so on."""
VERSION = 1 + len(_STEPS)


class StateTooNew(Unavailable):
    """A newer Triops wrote this state."""


def migrate(db: Db) -> None:
    """Bring the database to `VERSION`, in one transaction.

    Raises:
        StateTooNew: its version is above ours.
    """
    ((version,),) = db.execute("PRAGMA user_version").fetchall()
    if version > VERSION:
        words = f"the state at {db.filename} has version {version}, this Triops knows up to {VERSION}"
        raise StateTooNew(f"{words}; install a newer Triops, or set TRIOPS_STATE_DIR to another folder")
    if version == VERSION:
        return
    steps = [resources.files("triops.runtime.store").joinpath("schema.sql").read_text("utf-8"), *_STEPS][version:]
    db.execute(f"BEGIN IMMEDIATE; {''.join(steps)} PRAGMA user_version={VERSION}; COMMIT")
