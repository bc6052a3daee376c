"""Official images through testcontainers, where there is a Docker."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class NoDockerError(RuntimeError):
    """There is no Docker, or it cannot run the image."""


@contextmanager
def container(image: str, port: int, *, environment: Mapping[str, str] | None = None, ready: str) -> Iterator[tuple[str, int]]:
    """Run `image` until the end of the block and yield host and port; `ready` is what its log says when it is up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Docker's client and testcontainers deprecate their own parts
        running = _start(image, port, environment or {}, ready)
        if isinstance(running, str):
            gc.collect()  # Docker's client leaves the socket open on which it failed: collect it while nobody complains
            raise NoDockerError(f"Docker cannot run {image}: {running}")
        try:
            yield str(running.get_container_host_ip()), int(running.get_exposed_port(port))
        finally:
            running.stop()


def _start(image: str, port: int, environment: Mapping[str, str], ready: str) -> Any:
    """Return the running container, or why there is none, as text: an exception would keep the client's socket."""
    try:
        from docker.errors import DockerException
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    except ImportError as error:
        return f"testcontainers is not installed: {error}"
    try:
        prepared = DockerContainer(image).with_envs(**environment)
        prepared.ports[str(port)] = ("127.0.0.1", None)  # Docker publishes to every interface unless told otherwise
        return prepared.waiting_for(LogMessageWaitStrategy(ready)).start()
    except DockerException as error:
        return str(error)
