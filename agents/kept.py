"""What is kept because making it anew costs time: the last used, up to a size. Losing any of it loses nothing."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by key, each with a size, together at most `limit`. Belongs to one thread."""

    def __init__(self, limit: int) -> None:
        self._values: dict[str, tuple[T, int]] = {}
        self._left = limit

    def get(self, key: str) -> T | None:
        found = self._values.get(key)
        return found and found[0]

    def keep(self, key: str, value: T, size: int) -> None:
        """Keep it in place of an older one; what was kept longest ago makes room."""
        self._forget(key)
        self._values[key] = value, size
        self._left -= size
        while self._left < 0:
            self._forget(next(iter(self._values)))

    def _forget(self, key: str) -> None:
        if found := self._values.pop(key, None):
            self._left += found[1]
