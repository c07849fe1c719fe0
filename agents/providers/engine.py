"""The child program that serves one `.gguf` over HTTP with llama.cpp: `python -m triops.agents.providers.engine`.

A process of its own, because native code that runs out of memory or crashes must cost nobody else anything. It knows
nothing of the gateway: settings come in argv, the key that opens it is the first line of its stdin, it prints one
JSON line when it serves, and it ends when its stdin ends. Killing it is safe.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

xllamacpp: Any = importlib.import_module("xllamacpp")  # native, without types

HTTP_THREADS = 8
"""A kept-alive connection holds one while it lives; idle threads cost nothing."""
CACHE_MIB = 32
"""Prompts kept beside the live one; llama.cpp's default of 8 GiB is for servers of their own."""


def main(argv: list[str] | None = None) -> None:
    """Serve until stdin ends, then exit 0.

    Prints `{"pid": …, "socket": …}` or `{"pid": …, "url": …}` when the model is loaded. A model that cannot be
    loaded, or a socket that cannot be bound, ends the program with status 1 and llama.cpp's reasons on stderr.
    """
    # Ctrl-C at a terminal reaches every process in front; it is meant for the one that asked.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    options = _parser().parse_args(argv)
    key = sys.stdin.buffer.readline().decode().strip()
    if not key:
        sys.exit("no key on stdin")
    try:
        server = xllamacpp.Server(_parameters(options, key))
    except RuntimeError as error:
        sys.exit(str(error))
    where = {"socket": options.socket} if options.socket else {"url": str(server.listening_address)}
    sys.stdout.write(json.dumps({"pid": os.getpid(), **where}) + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    if options.socket:
        Path(options.socket).unlink(missing_ok=True)
    os._exit(0)  # at once: unloading politely would wait for an answer that nobody reads any more


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triops.agents.providers.engine")
    parser.add_argument("--model", required=True, help="path of a .gguf file")
    parser.add_argument("--context", type=int, required=True, help="tokens, prompt and reply together")
    parser.add_argument("--threads", type=int, default=1, help="that compute")
    parser.add_argument("--socket", help="listen on this Unix socket; without it on a free loopback port")
    return parser


def _parameters(options: argparse.Namespace, key: str) -> Any:
    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.n_ctx = options.context
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.hostnames = [options.socket or "127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [key]
    # By default llama.cpp reflects any web page's origin, with credentials, and shows its slots and a page.
    parameters.cors_origins = ""
    parameters.cors_credentials = False
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.offline = True
    parameters.n_threads_http = HTTP_THREADS
    parameters.cache_ram_mib = CACHE_MIB
    parameters.warmup = False  # the first real prefill does the same work
    parameters.verbosity = 1
    return parameters


if __name__ == "__main__":
    main()
