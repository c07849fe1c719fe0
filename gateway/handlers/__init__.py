"""The methods' handlers by family; importing this fills the table. Each is thin: it calls the runtime."""

from triops.gateway.handlers import agent, chat, cron, devices, models, sessions, system

__all__ = ["agent", "chat", "cron", "devices", "models", "sessions", "system"]
