"""`triops models test`: ask one model for one word, and say what is wrong and what to do.

Needs no gateway: it finds the model as a run does, with the same configuration, in the environment of this shell.
"""

import os
import time
from typing import TYPE_CHECKING, Any

import click

from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import json_option, show

if TYPE_CHECKING:
    from triops.runtime.models import ModelCatalog
    from triops.runtime.warmup import Warmup

SECONDS = 300.0
"""For all of it: a local server may load the weights first."""
PROBE = "Answer with the one word: ready"


@click.command("test")
@click.argument("ref", required=False)
@json_option
def command(ref: str | None) -> None:
    """Try a model and its key: REF is provider/model or an alias, else the default one.

    One small request with the configuration and the environment of this shell.
    """
    import trio

    found = trio.run(_test, ref)
    tools = "takes tools" if found["tools"] else "is asked without tools"
    show(found, f"{found['model']} answers and {tools}. First word after {found['firstMs']} ms: {found['text']!a}")


async def _test(ref: str | None) -> dict[str, Any]:
    import trio

    from triops.agents.errors import ProviderError
    from triops.runtime.bus import Bus
    from triops.runtime.clock import system_clock
    from triops.runtime.config_file import load_config
    from triops.runtime.errors import RuntimeFault
    from triops.runtime.logs import Log
    from triops.runtime.paths import locate
    from triops.runtime.providers import open_catalogs
    from triops.runtime.warmup import open_warmup

    async def no_prompt(model: object) -> str:
        return ""

    paths, log = locate(os.environ), Log()
    loaded = load_config(paths, os.environ)
    bus, found = Bus(log), dict[str, Any]()
    with trio.move_on_after(SECONDS):
        async with open_catalogs(paths, redactor=log.redactor) as catalog_of:
            catalog = catalog_of(loaded)
            with open_warmup(catalog, bus=bus, clock=system_clock, log=log, system_prompt=no_prompt) as warmup:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(warmup.run)
                    try:
                        found = await _ask(ref, catalog, warmup)
                    except ProviderError as error:
                        told = {"kind": error.kind, "status": error.status, "detail": error.detail}
                        hint = f"It said: {error.detail}" if error.detail and "; it says: " not in str(error) else ""
                        raise Failure(str(error), hint, error={"code": "MODEL_FAILED", **told}) from None
                    except RuntimeFault as error:
                        raise Failure(str(error), error={"code": "MODEL_NOT_FOUND"}) from None
                    nursery.cancel_scope.cancel(reason="the test is over")
    if not found:
        raise Failure(f"no answer within {SECONDS:g} s", error={"code": "TIMEOUT"})
    return found


async def _ask(ref: str | None, catalog: "ModelCatalog", warmup: "Warmup") -> dict[str, Any]:
    from triops.agents.messages import UserMessage
    from triops.agents.model import ModelRequest, RetryNotice, TextDelta, ToolSchema

    name = ref or await warmup.default()
    if name is None:
        raise Failure("there is no model to test", "Configure one, or name it: triops models list")
    resolved = await catalog.resolve(name)
    info = resolved.info
    with_tools = info.compat.supports_tools and not info.demo
    request = ModelRequest(
        model=info,
        system="",
        messages=(UserMessage(PROBE, round(time.time() * 1000)),),
        tools=(ToolSchema("now", "Tell the time.", {"type": "object", "properties": {}}),) if with_tools else (),
        late=lambda words: click.echo(f"{words} …", err=True),
    )
    start, first, text = time.monotonic(), 0.0, ""
    async with resolved.provider.stream(request) as batches:
        async for event in (event async for batch in batches for event in batch):
            if isinstance(event, RetryNotice):
                click.echo(f"{event.reason}; asked again in {event.delay:g} s …", err=True)
                continue
            first = first or time.monotonic() - start
            text += event.text if isinstance(event, TextDelta) else ""
    return {"ok": True, "model": str(info.ref), "firstMs": round(first * 1000), "text": text[:80], "tools": with_tools}
