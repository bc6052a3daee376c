"""How plugins are isolated, and what of it this system has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sark_mw.errors import ConfigurationError

#: Without these nothing is claimed to hold. Each of the others is a second lock on a door that these lock: there is no system
#: call for a network, and namespaces are refused in default containers.
NEEDED_LAYERS = ("no_new_privs", "seccomp", "landlock_fs", "rlimits", "uid", "pidfd")
LAYERS = (*NEEDED_LAYERS, "landlock_net", "landlock_scopes", "parent_death", "namespaces")


#: The most that each may be: what the kernel, the orders to the zygote and the event loop's clock have room for.
_WHOLE = {
    **dict.fromkeys(("memory_bytes", "reply_bytes", "request_bytes", "queue_bytes"), 1 << 40),
    **dict.fromkeys(("pipeline", "queue", "breaker_deaths", "worker_cpu_s"), 1 << 30),
    "workers": 8,
}
_MOST_S = 1e6
_SECONDS = (
    *("timeout_s", "cpu_s", "start_timeout_s", "backoff_s", "backoff_most_s"),
    *("breaker_window_s", "breaker_s", "breaker_most_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationOptions:
    """How the workers of one plugin run.

    `require` refuses to run without one of `NEEDED_LAYERS`, `best-effort` warns. `timeout_s` is a decision's time where the
    plugin names none, `cpu_s` the processor time it may use of that. `stateless` gives every request a process that served nobody
    before. `preload` names modules beside the standard library that plugins may import: they are trusted and loaded before the
    lockdown. After `breaker_deaths` deaths within `breaker_window_s` nobody is asked for `breaker_s` (doubled each time).
    """

    mode: Literal["require", "best-effort"] = "require"
    workers: int = 1
    stateless: bool = False
    memory_bytes: int = 64 << 20
    timeout_s: float = 5.0
    cpu_s: float = 1.0
    reply_bytes: int = 64 << 10
    request_bytes: int = 4 << 20
    pipeline: int = 64
    queue: int = 1024
    queue_bytes: int = 64 << 20
    start_timeout_s: float = 10.0
    backoff_s: float = 0.05
    backoff_most_s: float = 5.0
    breaker_deaths: int = 5
    breaker_window_s: float = 30.0
    breaker_s: float = 2.0
    breaker_most_s: float = 60.0
    worker_cpu_s: int = 600
    preload: tuple[str, ...] = ()
    namespaces: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("require", "best-effort"):
            raise ConfigurationError(f"isolation mode must be 'require' or 'best-effort', not {self.mode!r}")
        _check_bounds(self)
        if self.reply_bytes > 1 << 20:
            raise ConfigurationError("isolation reply_bytes must be at most 1 MiB: replies are read in the gateway's event loop")

    @property
    def shown_bytes(self) -> int:
        """How long a request may be: read, a text of it takes up to 4 times as much, and `lower()` another 16 times."""
        return min(self.request_bytes, self.memory_bytes // 32)

    @property
    def shown_values(self) -> int:
        """How many values may be in a request: each takes up to 350 bytes with its key, all together a quarter of the memory."""
        return self.memory_bytes // 2048


def _check_bounds(options: IsolationOptions) -> None:
    for name, most in _WHOLE.items():
        value = getattr(options, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigurationError(f"isolation {name} must be a whole number from 1 to {most}, not {_told(value)}")
    for name in _SECONDS:
        value = getattr(options, name)
        if type(value) not in (int, float) or not 0 < value <= _MOST_S:
            raise ConfigurationError(f"isolation {name} must be above 0 and at most {_MOST_S:.0f} seconds, not {_told(value)}")


def _told(value: object) -> str:
    # No interpreter writes the digits of an int without end.
    return "one without end" if isinstance(value, int) and value.bit_length() > 1_000 else repr(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """What holds a worker on this system: by layer True, or why it is not there."""

    layers: Mapping[str, bool | str] = field(default_factory=dict)

    @property
    def missing(self) -> Mapping[str, str]:
        """Name the layers that are not there, with the reasons."""
        return {name: str(self.layers.get(name) or "unknown") for name in LAYERS if self.layers.get(name) is not True}

    @property
    def lacking(self) -> Mapping[str, str]:
        """Name those of them without which mode `require` refuses."""
        return {name: reason for name, reason in self.missing.items() if name in NEEDED_LAYERS}

    @property
    def complete(self) -> bool:
        """Tell whether mode `require` is content."""
        return not self.lacking

    def require(self) -> None:
        """Raise `ConfigurationError` with the layers that are missing, if one is."""
        if not self.complete:
            reasons = "; ".join(f"{name} ({reason})" for name, reason in self.lacking.items())
            raise ConfigurationError(
                f"this system cannot isolate plugins: missing {reasons}. "
                "Mode best-effort runs them all the same, held by less; WASM or rules need none of it"
            )
