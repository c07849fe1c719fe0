"""Moved: see `triops.runtime.testing`."""

from triops.runtime.testing import InlineStore, open_inline_store

__all__ = ["InlineStore", "open_inline_store"]
