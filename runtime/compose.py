"""The composition root: every part of a runtime, opened in the order in which they need each other.

store ⊃ models ⊃ runs ⊃ services: nesting is the order of shutdown. A part knows those that it was given and no other.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from typing import Any

import trio

from triops.agents.tool import AnyTool
from triops.agents.tools.files import file_tools
from triops.runtime.agents import AgentProfile, profiles
from triops.runtime.boundaries import supervise
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock, InThread, system_clock
from triops.runtime.config import Config, workspace_of
from triops.runtime.config_file import LoadedConfig
from triops.runtime.cron.heartbeat import Heartbeat
from triops.runtime.cron.scheduler import CronScheduler, open_scheduler
from triops.runtime.deliveries import Deliveries
from triops.runtime.events import RunEnded
from triops.runtime.logs import Log, LogFile
from triops.runtime.models import ModelCatalog, ProviderEntry
from triops.runtime.paths import Paths
from triops.runtime.plans import Plans, prepare_workspaces
from triops.runtime.providers import open_catalogs
from triops.runtime.redaction import redacted, redacted_raw
from triops.runtime.reload import ConfigWatcher
from triops.runtime.runs.lanes import Lanes
from triops.runtime.runs.supervisor import Supervisor, open_supervisor
from triops.runtime.secrets import Secret
from triops.runtime.spend import Spend
from triops.runtime.store.aside import open_aside
from triops.runtime.store.sqlite import Store, open_store
from triops.runtime.tools.cron import cron_tool
from triops.runtime.tools.sessions import SessionTools
from triops.runtime.tracing import open_tracing
from triops.runtime.turn import ChatTurn
from triops.runtime.warmup import Warmup, open_warmup

NO_LIMIT = float("inf")
DRAIN = 10.0  # seconds that runs may take to finish when the runtime closes


class Runtime:
    """An open runtime: its parts. Made by `open_runtime`; belongs to the Trio thread."""

    def __init__(
        self,
        *,
        loaded: LoadedConfig,
        paths: Paths,
        clock: Clock,
        log: Log,
        log_file: LogFile,
        store: Store,
        bus: Bus,
        catalog: ModelCatalog,
        warmup: Warmup,
        runs: Supervisor,
        cron: CronScheduler,
        heartbeat: Heartbeat,
        plans: Plans,
        secret: Secret | None,
    ) -> None:
        self.loaded = loaded
        self.config: Config = loaded.config
        self.paths = paths
        self.clock = clock
        self.log = log
        self.log_file = log_file
        self.store = store
        self.bus = bus
        self.catalog = catalog
        self.warmup = warmup
        self.runs = runs
        self.cron = cron
        self.heartbeat = heartbeat
        self.plans = plans
        self.gateway_secret = secret
        """What clients prove themselves with; None with auth mode `none`."""
        self.agents: Mapping[str, AgentProfile] = profiles(loaded.config)
        self.watcher: ConfigWatcher | None = None
        """Of the configuration file, if that is watched."""

    async def reconfigure(self, loaded: LoadedConfig, catalog: ModelCatalog) -> None:
        """Go on with another configuration, whose models are those of `catalog`."""
        self.log.redactor.add(loaded.secrets)
        self.loaded, self.config, self.agents = loaded, loaded.config, profiles(loaded.config)
        await self.warmup.reconfigure(catalog)
        self.plans.reconfigure(self.agents, loaded.config)  # last: a plan holds what its model was

    def redacted_config(self) -> dict[str, Any]:
        """The configuration file as it was written, without its secrets."""
        return redacted(self.loaded.parsed)

    def redacted_raw(self) -> str | None:
        """The text of the configuration file, without its secrets."""
        return None if self.loaded.raw is None else redacted_raw(self.loaded.raw, self.loaded.parsed)


@asynccontextmanager
async def open_runtime(
    loaded: LoadedConfig,
    paths: Paths,
    *,
    log: Log,
    log_file: LogFile,
    secret: Secret | None = None,
    clock: Clock = system_clock,
    bus: Bus | None = None,
    store: Store | None = None,
    providers: tuple[ProviderEntry, ...] | None = None,
    tools: tuple[AnyTool, ...] = (),
    in_thread: InThread | None = None,
    drain: float = DRAIN,
    watched: Mapping[str, str] | None = None,
) -> AsyncGenerator[Runtime]:
    """Open everything; inside the block runs are accepted and jobs fire.

    The state folder must be prepared and held (`hold_instance`). `bus` is for who wants to hear of the start, too;
    `store`, `providers` and `in_thread` replace the real ones, `tools` come on top of them. With `watched`, the
    environment that `loaded` was read with, the configuration file is taken up again when it changes. Leaving the block
    lets runs finish for `drain` seconds.

    Raises:
        StateError: an agent's workspace cannot be used.
        Unavailable: the state cannot be opened.
    """
    config, in_thread = loaded.config, in_thread or trio.to_thread.run_sync
    prepare_workspaces(config, paths)
    async with AsyncExitStack() as stack:
        if store is None:
            store = await stack.enter_async_context(open_store(paths.database))
        aside = stack.enter_context(closing(open_aside(paths.database)))
        bus = bus or Bus(log.bind("bus"))
        await stack.enter_async_context(open_tracing(config.diagnostics.otel, bus, clock, log))
        catalog_of = await stack.enter_async_context(open_catalogs(paths, redactor=log.redactor, providers=providers))
        catalog = catalog_of(loaded)
        holder: list[Supervisor] = []
        jobs: list[CronScheduler] = []
        session_tools = SessionTools(store, lambda: holder[0], clock)
        plans = Plans(
            profiles(config),
            config=config,
            workspace_of=partial(workspace_of, config, paths),
            tools=lambda root: (*file_tools(root), *session_tools.tools(), cron_tool(lambda: jobs[0]), *tools),
            clock=clock,
            in_thread=in_thread,
            log=log,
        )
        warmup = stack.enter_context(
            open_warmup(catalog, bus=bus, clock=clock, log=log.bind("warmup"), system_prompt=plans.warm_prompt)
        )
        spend = Spend(config, store, clock)
        turn = partial(
            ChatTurn,
            catalog=catalog,
            warmup=warmup,
            plans=plans,
            spend=spend,
            slow=set(),
            bus=bus,
            clock=clock,
            log=log.bind("turn"),
        )
        deliveries = Deliveries(store, log)
        stack.enter_context(bus.subscribe(deliveries.hear, RunEnded))
        lanes = Lanes(cap=config.messages.queue.cap, main=config.agents.defaults.max_concurrent)
        runs = await stack.enter_async_context(
            open_supervisor(
                store=store,
                bus=bus,
                clock=clock,
                log=log.bind("runs"),
                lanes=lanes,
                turn=turn,
                budget=config.agents.defaults.timeout_seconds or NO_LIMIT,
                max_age_ms=round(config.messages.queue.max_age * 1000),
                grace=drain,
                aside=aside,
                in_thread=in_thread,
            )
        )
        holder.append(runs)
        cron = stack.enter_context(
            open_scheduler(store, bus, runs, config=config.cron, clock=clock, log=log.bind("cron"), path=paths.database)
        )
        jobs.append(cron)
        heartbeat = Heartbeat(store, bus, runs, config=config.agents.defaults.heartbeat, clock=clock)
        services = await stack.enter_async_context(trio.open_nursery())
        stack.callback(services.cancel_scope.cancel, reason="the runtime stops")
        services.start_soon(_service, "model warm-up", warmup.run, log, name="model warm-up")
        services.start_soon(_service, "cron scheduler", cron.run, log, name="cron scheduler")
        services.start_soon(_service, "heartbeat", heartbeat.run, log, name="heartbeat")
        services.start_soon(_service, "deliveries", partial(deliveries.run, heartbeat.wake), log, name="deliveries")
        runtime = Runtime(
            loaded=loaded,
            paths=paths,
            clock=clock,
            log=log,
            log_file=log_file,
            store=store,
            bus=bus,
            catalog=catalog,
            warmup=warmup,
            runs=runs,
            cron=cron,
            heartbeat=heartbeat,
            plans=plans,
            secret=secret,
        )

        async def apply(loaded: LoadedConfig) -> None:
            spend.limits = loaded.config.models.spend
            await runtime.reconfigure(loaded, catalog_of(loaded))

        if watched is not None:
            watcher = runtime.watcher = ConfigWatcher(
                loaded, paths, watched, apply=apply, in_thread=in_thread, log=log.bind("config")
            )
            services.start_soon(_service, "config watcher", watcher.run, log, name="config watcher")
        yield runtime


async def _service(name: str, run: Callable[[], Any], log: Log) -> None:
    await supervise(name, run, log=log.bind("services"))
