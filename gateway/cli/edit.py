"""Changes of the configuration file by commands: what else stands in it stays."""

import json
import os
import re
from collections.abc import Callable
from typing import Any, cast

from triops.gateway.cli.failures import Exit, Failure
from triops.gateway.cli.output import show_warnings
from triops.gateway.cli.rpc import Gateway
from triops.runtime.paths import FILE_MODE, Paths, private_folder, write_new

_COMMENT = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(//|/\*)""", re.DOTALL)


def edit_configuration(gateway: Gateway, change: Callable[[dict[str, Any]], None], by_hand: str) -> None:
    """Let `change` change the parsed file, and write it if a gateway could start with it.

    Raises:
        Failure: it has comments, which a rewrite would lose (the hint is what to write `by_hand`).
        ConfigError: it cannot be used, before or after the change; nothing was written.
    """
    paths = gateway.paths
    gateway.load_configuration()
    text = paths.config.read_text("utf-8") if paths.config.exists() else "{}"
    if any(match[1] for match in _COMMENT.finditer(text)):
        words = f"{paths.config} has comments, which would be lost"
        raise Failure(words, f"Write into it by hand: {by_hand}", code=Exit.CONFIG)
    from triops.runtime.config_file import load_config, parse_json5

    parsed = cast("dict[str, Any]", parse_json5(text))
    change(parsed)
    private_folder(paths.state)
    draft = paths.config.with_name(f"{paths.config.name}.new")
    draft.unlink(missing_ok=True)
    write_new(draft, f"{json.dumps(parsed, indent=2, ensure_ascii=False)}\n".encode())
    try:
        show_warnings(load_config(Paths(paths.state, draft), os.environ).warnings)
        target = paths.config.resolve()  # a link stays one
        draft.chmod(target.stat().st_mode & 0o777 if target.exists() else FILE_MODE)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def member(parent: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The object at a path, made where it is missing.

    Raises:
        Failure: something else stands there.
    """
    for place, key in enumerate(keys, 1):
        found: object = parent.setdefault(key, {})
        if not isinstance(found, dict):
            raise Failure(f"{'.'.join(keys[:place])} is no object in the configuration", code=Exit.CONFIG)
        parent = cast("dict[str, Any]", found)
    return parent
