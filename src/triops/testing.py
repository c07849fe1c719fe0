"""What tests of tools, providers and host programs need; see `triops.runtime.testing`."""

from triops.runtime.testing import (
    EventRecorder,
    FaultyStore,
    InlineStore,
    TestRuntime,
    copy_state,
    open_inline_store,
    open_test_runtime,
)

__all__ = [
    "EventRecorder",
    "FaultyStore",
    "InlineStore",
    "TestRuntime",
    "copy_state",
    "open_inline_store",
    "open_test_runtime",
]
