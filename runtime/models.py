"""The catalogue: the one answer to "what is this model, and who serves it". Its only other writer is the warm-up.

What is configured is known at once. What a provider discovers or makes up by its hook is asked of the warm-up, which
runs the hooks; a run that names such a model waits for that answer under a deadline.
"""

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

import msgspec

from triops.agents.model import ModelInfo, ModelRef, Provider, Resting
from triops.runtime.endpoints import KEYED, key_hint
from triops.runtime.errors import Invalid, Unavailable

WarmState = Literal["cold", "warming", "ready", "failed"]


class Resolved(msgspec.Struct, frozen=True):
    """A model and its server."""

    provider: Provider
    info: ModelInfo


class ProviderState(msgspec.Struct, frozen=True, kw_only=True):
    """One provider as the warm-up last saw it; `cold` again when it has unloaded its model."""

    provider: str
    why: str
    """What made it known: `configured`, `OPENAI_API_KEY is set`, …"""
    state: WarmState
    reason: str = ""
    models: int = 0
    ms: int | None = None
    """How long its warm-up took."""
    expires: int | None = None
    """When its credential does, in epoch milliseconds, as far as that is known."""
    kind: str = ""
    """The class of its failure, such as `auth`."""
    transient: bool = False
    """It failed in a way that passes: it is asked again by itself."""


class ProviderEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A provider, and what was known of it before anybody asked it."""

    provider: Provider
    why: str
    models: tuple[ModelInfo, ...] = ()
    key: Literal["config", "env"] | None = None
    """Where its key stands, if it has one."""
    others: Mapping[str, Provider] = {}
    """By wire format, who serves those models that have another one than the provider."""

    def serving(self, info: ModelInfo) -> Resolved:
        return Resolved(self.others.get(info.api, self.provider), info)


class UnknownModel(Invalid):
    """No provider has that model; the message names the nearest ones and what was tried."""


class SilentProvider(Unavailable):
    """A provider did not say in time whether it has a model."""


Ask = Callable[[ModelRef], Awaitable[ModelInfo | None]]
"""Have the warm-up ask a provider's hook; may wait, under its caller's deadline."""


class ModelCatalog:
    """All models that are known now."""

    def __init__(
        self,
        entries: Sequence[ProviderEntry],
        *,
        aliases: Mapping[str, str],
        default: str | None,
        named: Sequence[str] = (),
    ) -> None:
        self._entries = {entry.provider.id: entry for entry in entries}
        self._resting = {id: e.provider for id, e in self._entries.items() if isinstance(e.provider, Resting)}
        self._aliases = {alias.lower(): target for alias, target in aliases.items()}
        self._models: dict[ModelRef, ModelInfo] = {info.ref: info for entry in entries for info in entry.models}
        self._states = {
            id: ProviderState(provider=id, why=entry.why, state="cold", models=len(entry.models))
            for id, entry in self._entries.items()
        }
        self._listed: dict[str, set[ModelRef]] = {}
        self._ask: Ask | None = None
        self.named = named
        """What the configuration names besides: the models of agents, fallbacks, aliases' targets."""
        self.default = default
        """`provider/model` or alias for who names none; the warm-up fills it in when nothing is configured."""
        self.default_why = "configured" if default else ""
        self._missing: tuple[str | None, str] = (None, "")

    def served_by(self, ask: Ask) -> None:
        """Say who runs the hooks."""
        self._ask = ask

    # -- asking --------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Resolved | None:
        """A model that is known already, by reference, alias or its bare id if only one provider has it."""
        ref = self._reference(name)
        info = self._models.get(ref) if ref is not None else None
        return self._entries[info.ref.provider].serving(info) if info is not None else None

    async def resolve(self, name: str) -> Resolved:
        """The model of a reference, alias or bare id; asks the provider's hook when no list holds it.

        Raises:
            UnknownModel: nobody has it.
        """
        known = self.find(name)
        if known is not None:
            return known
        ref = self._reference(name)
        if ref is not None and ref.provider in self._entries and self._ask is not None:
            info = await self._ask(ref)
            if info is not None:
                return self._entries[ref.provider].serving(info)
        raise UnknownModel(self._unknown(name, ref))

    def aliases_of(self, ref: ModelRef) -> str | None:
        return next((alias for alias, target in self._aliases.items() if target == str(ref)), None)

    @property
    def default_fault(self) -> str:
        """Why the default model is not to be had; empty while it is known, or nobody looked it up yet."""
        name, reason = self._missing
        return reason if name is not None and name == self.default and self.find(name) is None else ""

    def models(self) -> list[ModelInfo]:
        """Every known model: configured order first, then as discovered."""
        return list(self._models.values())

    def states(self) -> list[ProviderState]:
        return [self._as_it_is(state) for state in self._states.values()]

    def state(self, provider: str) -> ProviderState | None:
        state = self._states.get(provider)
        return self._as_it_is(state) if state is not None else None

    def _as_it_is(self, state: ProviderState) -> ProviderState:
        provider = self._resting.get(state.provider)
        if state.state == "ready" and provider is not None and (why := provider.rest):
            return msgspec.structs.replace(state, state="cold", reason=why)
        return state

    def entries(self) -> list[ProviderEntry]:
        return list(self._entries.values())

    def _reference(self, name: str) -> ModelRef | None:
        name = self._aliases.get(name.strip().lower(), name.strip())
        try:
            ref = ModelRef.parse(name)
        except ValueError:
            ref = None
        if ref is not None and ref.provider in self._entries:
            return ref
        same_id = self._of_id(name)
        return same_id[0] if len(same_id) == 1 else ref

    def _of_id(self, model_id: str) -> list[ModelRef]:
        return [known for known in self._models if known.model == model_id]

    def _unknown(self, name: str, ref: ModelRef | None) -> str:
        near = difflib.get_close_matches(name, [*map(str, self._models), *self._aliases], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `triops models list` shows what is known"
        if len(several := self._of_id(name)) > 1:
            return f"{name!r} is not one model: write {' or '.join(sorted(map(str, several))[:5])}"
        if ref is None or ref.provider not in self._entries:
            remedy = f"; {key_hint(ref.provider)}" if ref is not None and ref.provider in KEYED else hint
            known = ", ".join(self._entries) or "none"
            what = f"no provider of that name (known: {known})" if ref is not None else "no model has that id or alias"
            return f"unknown model {name!r}: {what}{remedy}"
        state = self._states[ref.provider]
        if state.state == "failed":
            return f"model {name!r} was not found, because provider {ref.provider} failed: {state.reason}"
        tried = f"looked for among its {state.models} and by its hook"
        return f"unknown model {name!r}: provider {ref.provider} is {state.state} and does not have it ({tried}){hint}"

    # -- told by the warm-up -------------------------------------------------------------------------------------------

    def become(self, new: "ModelCatalog") -> None:
        """Hold what a changed configuration says. A provider that it left as it was keeps what is known of it."""
        same = {
            id
            for id, entry in new._entries.items()
            if self._entries.get(id) is entry and self._states[id].state == "ready"
        }
        self._entries, self._resting = new._entries, new._resting
        self._aliases, self.named = new._aliases, new.named
        self._models = new._models | {ref: info for ref, info in self._models.items() if ref.provider in same}
        self._states = new._states | {id: self._states[id] for id in same}
        self._listed = {id: refs for id, refs in self._listed.items() if id in same}
        self.default, self.default_why = new.default, new.default_why

    def learn(self, models: Sequence[ModelInfo], *, list_of: str | None = None) -> None:
        """These models exist. What the configuration says of a model is kept; what the provider `list_of` listed before
        and does not any more is gone."""
        if list_of is not None:
            new = {info.ref for info in models}
            for ref in self._listed.get(list_of, set()) - new:
                del self._models[ref]
            self._listed[list_of] = new - self._models.keys() | self._listed.get(list_of, set()) & new
        for info in models:
            self._models.setdefault(info.ref, info)

    def report(
        self,
        provider: str,
        state: WarmState,
        *,
        reason: str = "",
        ms: int | None = None,
        expires: int | None = None,
        kind: str = "",
        transient: bool = False,
    ) -> None:
        """How a provider's warm-up stands."""
        before = self._states[provider]
        count = sum(ref.provider == provider for ref in self._models)
        self._states[provider] = ProviderState(
            provider=provider,
            why=before.why,
            state=state,
            reason=reason,
            models=count,
            ms=ms,
            expires=expires or before.expires,
            kind=kind,
            transient=transient,
        )

    def miss_default(self, reason: str) -> None:
        """The default model was looked up, and not found."""
        self._missing = (self.default, reason)

    def choose_default(self, name: str, why: str) -> None:
        """What to use when nobody says."""
        self.default = name
        self.default_why = why
