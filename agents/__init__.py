"""The mind: messages, the loop, the prompt, tools and providers. Knows no session, no store, no socket of a client."""
