"""`hello-ok`: what a client is told when it is let in (protocol §3.4). Advertises only what works."""

from triops.gateway.handlers.intake import MAX_IMAGE
from triops.gateway.handlers.system import health_summary
from triops.gateway.methods import METHODS
from triops.gateway.outbox import MAX_BYTES
from triops.gateway.pairing import Admit
from triops.gateway.schema.connect import (
    AttachmentPolicy,
    Features,
    HelloAuth,
    HelloOk,
    Policy,
    Server,
    SessionDefaults,
    Snapshot,
)
from triops.gateway.scopes import ADMIN
from triops.gateway.services import Services
from triops.runtime.sessions import DEFAULT_AGENT, MAIN_KEY

TICK_MS = 30_000
MAX_PAYLOAD = 16 * 1024 * 1024
EVENTS = (
    "connect.challenge",
    "agent",
    "chat",
    "chat.metadata.changed",
    "session.message",
    "session.tool",
    "sessions.changed",
    "presence",
    "tick",
    "shutdown",
    "health",
    "heartbeat",
    "cron",
    "device.pair.requested",
    "device.pair.resolved",
)


async def hello_ok(services: Services, connection_id: str, admitted: Admit) -> HelloOk:
    """The payload for a connection that was just admitted."""
    runtime = services.runtime
    admin = ADMIN in admitted.scopes
    token = admitted.token
    return HelloOk(
        server=Server(version=services.version, conn_id=connection_id),
        features=Features(methods=tuple(METHODS), events=EVENTS),
        snapshot=Snapshot(
            presence=services.presence.entries(),
            health=await health_summary(services),
            state_version=services.state_version(),
            uptime_ms=services.uptime_ms,
            session_defaults=SessionDefaults(
                default_agent_id=DEFAULT_AGENT,
                main_key="main",
                main_session_key=MAIN_KEY,
                scope="per-sender",
                model_configured=runtime.catalog.default is not None,
            ),
            config_path=str(runtime.paths.config) if admin else None,
            state_dir=str(runtime.paths.state) if admin else None,
            auth_mode=services.door.mode if admin else None,
        ),
        auth=HelloAuth(
            method=admitted.method,
            role=admitted.role,
            scopes=admitted.scopes,
            device_token=token.token.reveal() if token else None,
            issued_at_ms=token.issued_at_ms if token else None,
        ),
        policy=Policy(
            max_payload=MAX_PAYLOAD,
            max_buffered_bytes=MAX_BYTES,
            tick_interval_ms=TICK_MS,
            attachments=AttachmentPolicy(max_bytes=10 * 1024 * 1024, max_image_bytes=MAX_IMAGE),
        ),
    )
