"""The configuration file while the process runs: watched, and taken up as far as that needs no restart.

Knows neither models nor clients: who holds a part of the configuration is told by `apply`.
"""

import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, NoReturn, cast

import msgspec
import trio
from msgspec.structs import replace

from triops.runtime.clock import InThread
from triops.runtime.config import Config, join
from triops.runtime.config_file import LoadedConfig, load_config
from triops.runtime.config_reader import ConfigError
from triops.runtime.logs import Log
from triops.runtime.paths import Paths

PAUSE = 1.0  # seconds between two looks; a file that changes between two of them is still being written


def taken_up(held: Config, new: Config) -> Config:
    """`held` with what of `new` needs no restart: the models, which of them agents use, their names and their tools."""
    mine, wanted = held.agents, new.agents
    defaults = replace(
        mine.defaults,
        model=wanted.defaults.model,
        models=wanted.defaults.models,
        system_prompt=wanted.defaults.system_prompt,
    )
    entries = {
        id: replace(wanted.entries[id], workspace=entry.workspace) if id in wanted.entries else entry
        for id, entry in mine.entries.items()
    }
    return replace(
        held,
        models=new.models,
        tools=new.tools,
        env=new.env,
        secrets=new.secrets,
        agents=replace(mine, defaults=defaults, entries=entries),
    )


def differences(one: object, other: object, path: str = "") -> Generator[str]:
    """The paths at which two configurations are not the same."""
    if isinstance(one, msgspec.Struct) and isinstance(other, msgspec.Struct):
        for field in msgspec.structs.fields(one):
            yield from differences(getattr(one, field.name), getattr(other, field.name), join(path, field.encode_name))
    elif isinstance(one, dict) and isinstance(other, dict):
        mine, others = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        for key in mine | others:
            yield from differences(mine.get(key), others.get(key), join(path, key))
    elif one != other:
        yield path


class ConfigWatcher:
    """A service: looks at the file, and hands on what changed. One with faults changes nothing and is told of once."""

    def __init__(
        self,
        loaded: LoadedConfig,
        paths: Paths,
        environ: Mapping[str, str],
        *,
        apply: Callable[[LoadedConfig], Awaitable[None]],
        in_thread: InThread,
        log: Log,
    ) -> None:
        self._loaded = loaded
        self._held = loaded.config
        self._paths = paths
        self._environ = environ
        self._apply = apply
        self._in_thread = in_thread
        self._log = log
        self.pending = ""
        """What of the file the process does not do, for people: its faults, or what waits for a restart."""

    async def run(self) -> NoReturn:
        """Watch, until cancelled."""
        seen = last = self._mark() if self._loaded.exists else None
        await self._look()  # it may have changed since it was read
        while True:
            await trio.sleep(PAUSE)
            mark = self._mark()
            if mark == last != seen:
                seen = mark
                await self._look()
            last = mark

    def _mark(self) -> tuple[int, ...] | None:
        try:
            stat = os.stat(self._paths.config)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def _look(self) -> None:
        try:
            loaded = await self._in_thread(lambda: load_config(self._paths, self._environ))
        except ConfigError as error:
            faults = "; ".join(map(str, error.faults))
            self.pending = f"the changed file cannot be used, the old one holds: {faults}"
            self._log.error(
                "the changed configuration cannot be used, the old one holds", path=self._paths.config, faults=faults
            )
            return
        held = taken_up(self._held, loaded.config)
        later = ", ".join(differences(held, loaded.config))
        self.pending = later and f"these wait for a restart of the gateway: {later}"
        if loaded.hash == self._loaded.hash:
            return
        for notice in loaded.warnings:
            if notice not in self._loaded.warnings:
                self._log.warning(notice.message, path=notice.path)
        changed = list(differences(self._held, held))
        self._loaded, self._held = loaded, held
        await self._apply(replace(loaded, config=held))
        if changed:
            self._log.info("the configuration was taken up", changed=", ".join(changed))
        if later:
            self._log.warning("what changed here needs a restart of the gateway", path=later)
