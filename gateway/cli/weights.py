"""Brings a `.gguf` file into the state folder: from a path or a URL, whole or not at all, going on where it was cut."""

import hashlib
import re
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import click

from triops.gateway.cli.failures import Exit, Failure
from triops.gateway.cli.output import as_json

SILENCE = 60.0
"""Seconds."""
PIECE = 1 << 20
_NAME = re.compile(r"\w[\w.+-]*\.gguf", re.IGNORECASE)


def name_of(source: str, wanted: str | None) -> str:
    """What the file is to be called. Raises `Failure` where that is no name for a model."""
    name = wanted or unquote(urlsplit(source).path if is_url(source) else source).replace("\\", "/").rpartition("/")[2]
    name += "" if name.lower().endswith(".gguf") or not wanted else ".gguf"
    if not _NAME.fullmatch(name):
        words = f"{source!r} names no .gguf file: {name!r}" if not wanted else f"{wanted!r} is no name for a model"
        raise Failure(words, "Give it a name of letters, digits, '.', '-' and '_': --name", code=Exit.USAGE)
    return name


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def bring(source: str, target: Path, sha256: str | None) -> str:
    """Put what `source` is into `target`, and give back its SHA-256. A part that is there already is gone on with.

    Raises:
        Failure: it cannot be had, or is not what it should be; the words say what the same command does then.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        digest = _copy(source, part)
        with part.open("rb") as file:
            magic = file.read(4)
    except HTTPError as error:
        error.close()
        raise Failure(f"{source} cannot be had: HTTP {error.code} {error.reason}", "Check the address.") from None
    except URLError as error:
        raise Failure(f"{source} cannot be had: {error.reason}", "Check the address and the network.") from None
    except (OSError, HTTPException) as error:
        again = _again(part) if is_url(source) and part.exists() else ""
        raise Failure(f"{source} could not be copied: {error or type(error).__name__}", again) from None
    problem = "" if magic == b"GGUF" else "is no GGUF file"
    if sha256 is not None and digest != sha256.lower():
        problem = f"has the SHA-256 {digest}, not {sha256.lower()}"
    if problem:
        part.unlink()
        _mark(part).unlink(missing_ok=True)
        raise Failure(f"{source} {problem}", "Nothing was kept of it. Check the address.")
    part.replace(target)
    _mark(part).unlink(missing_ok=True)
    return digest


def _mark(part: Path) -> Path:
    """Where it is noted which version of a file a part belongs to."""
    return part.with_suffix(".version")


def _again(part: Path) -> str:
    if _mark(part).exists():
        return "The same command goes on where it stopped."
    return "The same command begins anew: the server does not say which version of the file it has."


def _copy(source: str, part: Path) -> str:
    with _opened(source, part) as (stream, start, total):
        left = max(0, total - start)
        if shutil.disk_usage(part.parent).free < left:
            raise Failure(f"{part.parent} has no room for {left / 1e6:.0f} MB", "Make room and run the command again.")
        digest = hashlib.sha256()
        if start:
            with part.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        bar = cast("Any", click).progressbar(length=total or None, label=part.stem, file=sys.stderr, hidden=as_json())
        with part.open("ab" if start else "wb") as file, bar as progress:
            progress.update(start)
            while piece := stream.read(PIECE):
                file.write(piece)
                digest.update(piece)
                progress.update(len(piece))
        got = part.stat().st_size
        if total and got != total:
            words = f"the connection ended after {got} of {total} bytes"
            raise Failure(words, _again(part))
        return digest.hexdigest()


@contextmanager
def _opened(source: str, part: Path) -> Generator[tuple[IO[bytes] | Any, int, int]]:
    """What is still to be read, how much is there already, and how much it is in all (0: unknown)."""
    if not is_url(source):
        with Path(source).expanduser().open("rb") as file:
            yield file, 0, Path(file.name).stat().st_size
        return
    request = Request(source, headers={"User-Agent": "triops"})  # noqa: S310 - http(s) alone gets here
    mark, have = _mark(part), part.stat().st_size if part.exists() else 0
    if have and mark.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", mark.read_text("utf-8"))
    try:
        answer = urlopen(request, timeout=SILENCE)  # noqa: S310
    except HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        part.unlink()  # it is longer than the file is now
        answer = urlopen(source, timeout=SILENCE)  # noqa: S310
    with answer:
        start = have if answer.status == 206 and answer.headers["Content-Range"].startswith(f"bytes {have}-") else 0
        if not start:
            mark.unlink(missing_ok=True)
            tag = answer.headers["ETag"] or "W/"
            if version := answer.headers["Last-Modified"] if tag.startswith("W/") else tag:
                mark.write_text(version, "utf-8")
        length = int(answer.headers["Content-Length"] or 0)
        yield answer, start, start + length if length else 0
