"""Commands that stay: the gateway, the demo, the fake provider."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from sark_mw.commands.options import Config, warn
from sark_mw.errors import ConfigurationError
from sark_mw.settings import Settings, UpstreamSettings, explain

_WORKERS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
#: Requests in flight get this long after SIGTERM; the settles and the last flush come after it.
_GRACE_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """What `serve` was asked for, as each worker process reads it again: no secret travels between processes."""

    config: Path | None
    upstreams: tuple[str, ...]
    host: str | None
    port: int | None

    def settings(self) -> Settings:
        """Read the settings and put the command line's words over them; raises `ConfigurationError`."""
        settings = Settings.load(self.config)
        changes: dict[str, object] = {}
        if self.upstreams:
            changes["upstreams"] = tuple(upstream_of(word) for word in self.upstreams)
        if self.host is not None:
            changes["host"] = self.host
        if self.port is not None:
            changes["port"] = self.port
        return settings.model_copy(update={"serve": settings.serve.model_copy(update=changes)})


def upstream_of(word: str) -> UpstreamSettings:
    """Read `URL`, `/prefix=URL` (the prefix stays in the path) or `strip:/prefix=URL` (it is taken off)."""
    fields: dict[str, object] = {"url": word}
    if not word.startswith(("http://", "https://")):
        prefix, _, url = word.partition("=")
        fields = {"url": url, "prefix": prefix.removeprefix("strip:"), "strip_prefix": prefix.startswith("strip:")}
    try:
        return UpstreamSettings.model_validate(fields)
    except ValidationError as error:
        raise ConfigurationError(f"--upstream {word}: {explain(error)}; write URL, /prefix=URL or strip:/prefix=URL") from error


def serve(
    config: Config = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL, /prefix=URL or strip:/prefix=URL (takes the prefix off); may be repeated, replaces the file's."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the port.")] = 1,
) -> None:
    """Run the gateway: a streaming reverse proxy that keeps its callers within budget."""
    plan = ServePlan(config=config, upstreams=tuple(upstream or ()), host=host, port=port)
    settings = plan.settings()
    if workers == 1:
        _serve_alone(settings)
    else:
        _require_shared(settings)
        _serve_together(plan, settings, workers)


def _require_shared(settings: Settings) -> None:
    if settings.store.url.startswith("memory:"):
        raise ConfigurationError(
            "memory:// lives in one process, so each worker would grant the whole budget: "
            "use embedded:///directory or redis://, or --workers 1"
        )
    if not settings.ledger.lasts:
        raise ConfigurationError(
            "sqlite:///:memory: is one process's ledger: set ledger.url to sqlite:///path or postgresql://…, or use --workers 1"
        )


def _check(settings: Settings) -> None:
    """Make what can be made without connecting, so that a wrong setting is said in one line before anything starts."""
    from sark_mw.gateway import build_gateway

    # Without metrics: in the parent of several workers they would count among the workers.
    build_gateway(settings.model_copy(update={"observe": settings.observe.model_copy(update={"metrics": False})}))


def _build(plan: ServePlan) -> object:
    """Make the gateway in a worker process; what there is to warn of, the parent has said."""
    from sark_mw.gateway import build_gateway

    log = logging.getLogger("sark_mw.gateway")
    log.disabled = True
    try:
        return build_gateway(plan.settings())
    finally:
        log.disabled = False


def _warn_of_memory(settings: Settings) -> None:
    if settings.ledger.lasts:
        return
    forgets = "every budget is handed out again" if settings.store.url.startswith("memory:") else "no report knows what was spent"
    warn(
        f"the ledger is in memory (sqlite:///:memory:): after a restart {forgets}; "
        "set ledger.url to sqlite:///sark.db or postgresql://…"
    )


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.serve.host,
        "port": settings.serve.port,
        "lifespan": "on",
        "ws": "none",
        "access_log": False,
        "log_level": "info",
        # The upstream's own are passed on.
        "server_header": False,
        "date_header": False,
        # Who the peer is decides whether its principal header counts: nobody may rewrite that.
        "proxy_headers": False,
        "timeout_graceful_shutdown": _GRACE_S,
    }


def _serve_alone(settings: Settings) -> None:
    import uvicorn

    from sark_mw.gateway import build_gateway

    gateway = build_gateway(settings)
    _warn_of_memory(settings)
    _run_server(uvicorn.Server(uvicorn.Config(gateway, **_options(settings))))


def _serve_together(plan: ServePlan, settings: Settings, workers: int) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    _check(settings)
    with tempfile.TemporaryDirectory(prefix="sark-metrics-") as own:
        # Before the workers start: prometheus_client looks when it is imported.
        os.environ.setdefault(_WORKERS_DIRECTORY, own)
        config = uvicorn.Config(partial(_build, plan), factory=True, workers=workers, **_options(settings))
        listener = config.bind_socket()
        try:
            supervisor = Multiprocess(config, sockets=[listener])
            supervisor.run()
        finally:
            listener.close()


def _run_server(server: Any) -> None:
    """Run until SIGTERM or Ctrl-C, drain, and exit with 0: the server itself would end by the signal once more."""

    def leave(_number: int, _frame: object) -> None:
        if not server.should_exit:  # else it has drained already, and only repeats the signal
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    server.run()
    if not server.started:
        sys.exit(3)


def demo(context: typer.Context) -> None:
    """Spend budgets on a fake provider with the official clients, and show that the books balance; --serve stays up."""
    try:
        from sark_mw.demo.run import main
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the demo needs an extra: pip install 'sark-mw[demo]' ({error})") from error
    sys.exit(main(context.args))


def fake_provider(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = 8081,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    ttft: Annotated[float, typer.Option(min=0, help="Seconds before the first byte.")] = 0.2,
    chunk: Annotated[float, typer.Option(min=0, help="Seconds between two chunks of a stream.")] = 0.01,
) -> None:
    """Run a provider that is not there: speaks the OpenAI and the Anthropic wire, costs nothing."""
    import uvicorn

    from sark_mw._fake_provider import FakeProvider

    provider = FakeProvider(seed=seed, ttft_s=ttft, chunk_s=chunk)
    config = uvicorn.Config(provider, host=host, port=port, access_log=False, ws="none", timeout_graceful_shutdown=2)
    _run_server(uvicorn.Server(config))
