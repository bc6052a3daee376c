"""What became of the requests that plugins were asked about: told to those that listen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnd:
    """How one request ended; its id is what plugins saw as `environment["request_id"]`.

    `admitted`: it went on to its provider. `status` is what came back, None if nothing did (or if it is not known here, as for
    `Sark.reserve`), and `upstream_seconds` the time until it did.
    """

    request_id: str
    admitted: bool
    status: int | None = None
    upstream_seconds: float | None = None


Listener = Callable[[RequestEnd], None]


class Outcomes:
    """Tells every listener of every request's end, once; a listener must be quick, and what it raises is logged and forgotten."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    def listen(self, listener: Listener) -> None:
        """Tell `listener` from now on; one that listens already goes on doing so."""
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)

    def forget(self, listener: Listener) -> None:
        """Tell `listener` no more."""
        self._listeners = tuple(each for each in self._listeners if each != listener)

    def tell(self, end: RequestEnd) -> None:
        """Tell all of a request's end."""
        for listener in self._listeners:
            try:
                listener(end)
            except Exception:
                logger.exception("a policy plugin failed to hear of a request's end")
