"""A person at a terminal."""

import os
import select
import subprocess
import sys
import time


class Typist:
    """`triops chat` in a pseudo-terminal."""

    def __init__(self, *, term: str = "dumb") -> None:
        import pty

        self.master, slave = pty.openpty()
        # In a session of its own with this terminal, so that ^C reaches it and nobody else.
        code = (
            "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from triops.gateway.cli.main import main; main(['chat'])"
        )
        environ = {**os.environ, "TERM": term}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environ
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, *, typing: str = "") -> None:
        """Read until `text` is on the screen, and forget what came up to there; `typing` is typed until it is."""
        deadline = time.monotonic() + 10
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            self.type(typing)
            if select.select([self.master], [], [], 0.2 if typing else 10)[0]:
                self.seen += os.read(self.master, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def close(self) -> int:
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            os.close(self.master)
