"""A Redis that speaks TLS only and knows its users from an ACL file."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import redis
import trustme

from tests.servers.process import new_directory, ports
from tests.servers.redis_server import RedisServer

ADMIN = "admin-password"
USER = "sark-password"
# What a gateway needs: its own keys, no administration. A test may take more away with `set_user`.
USER_RULES = "~sark:* &sark:* +@all -@admin -@dangerous"


async def goodbyes_said() -> None:
    """Wait until this loop has no socket left but its own: TLS closes one when both sides have said goodbye.

    redis-py does not wait for that where the server refuses it, and a loop that ends before it leaks the socket.
    """
    async with asyncio.timeout(60):
        while len(asyncio.get_running_loop()._selector.get_map()) > 1:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)


class TlsRedisServer(RedisServer):
    """`url` is rediss:// with the ACL user `sark`; clients need `ssl_ca_certs=server.ca_file` (`client()` has it).

    A client certificate is accepted and not asked for (`certificate_file`, `key_file`). The default user is off;
    `command` runs as the administrator, over the Unix socket.
    """

    def __init__(self, binary: Path, *, rules: str = USER_RULES, **options: str | int) -> None:
        directory = new_directory()
        self.ca_file = directory / "ca.pem"
        self.certificate_file = directory / "certificate.pem"
        self.key_file = directory / "key.pem"
        self.acl_file = directory / "users.acl"
        self._make_certificates()
        self.acl_file.write_text(f"user default off\nuser admin on >{ADMIN} ~* &* +@all\nuser sark on >{USER} {rules}\n")
        self.tls_port = ports.claim()
        super().__init__(
            binary,
            directory=directory,
            tls_port=self.tls_port,
            tls_ca_cert_file=str(self.ca_file),
            tls_cert_file=str(self.certificate_file),
            tls_key_file=str(self.key_file),
            tls_auth_clients="optional",
            aclfile=str(self.acl_file),
            **options,
        )
        self.url = f"rediss://sark:{USER}@127.0.0.1:{self.tls_port}"

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Return a context that trusts this server alone."""
        return ssl.create_default_context(cafile=self.ca_file)

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """Return an asyncio client as the user `sark` over verified TLS, without retries; the caller closes it."""
        return super().client(**{"ssl_ca_certs": str(self.ca_file), **options})

    def command(self, *words: str | bytes | int | float) -> Any:
        """Run one command as the administrator."""
        with redis.Redis(
            unix_socket_path=str(self.unix_socket), username="admin", password=ADMIN, decode_responses=True
        ) as client:
            return client.execute_command(*words)

    def set_user(self, rules: str) -> None:
        """Give the user `sark` exactly these rules (its password stays)."""
        self.command("ACL", "SETUSER", "sark", "reset", "on", f">{USER}", *rules.split())

    def close(self) -> None:
        """Kill the server and remove its files."""
        super().close()
        ports.release(self.tls_port)

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.private_key_pem.write_to_path(str(self.key_file))
        self.certificate_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
