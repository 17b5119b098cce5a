"""ROS domains on this machine: finds one that nobody uses, and keeps it while we run."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dtvla.errors import DtvlaError, InputError

# DDS-RTPS 9.6.2.3: domain d uses the UDP ports from 7400 + 250 d on. Above 101 they would reach into
# the range from which Linux takes ephemeral ports.
FIRST_PORT = 7400
PORTS_PER_DOMAIN = 250
DOMAINS = range(1, 102)


class DomainBusy(DtvlaError, RuntimeError):
    """The wanted domain is in use; the message says what to do."""


def bound_udp_ports(tables: tuple[Path, ...] = (Path("/proc/net/udp"), Path("/proc/net/udp6"))) -> set[int]:
    """All UDP ports that some process of this machine has bound."""
    ports = set()
    for table in tables:
        if table.is_file():
            for line in table.read_text().splitlines()[1:]:
                ports.add(int(line.split()[1].rsplit(":", 1)[1], 16))
    return ports


def is_busy(domain: int) -> bool:
    """Whether a DDS participant of this machine is in `domain`."""
    first = FIRST_PORT + PORTS_PER_DOMAIN * domain
    return any(first <= port < first + PORTS_PER_DOMAIN for port in bound_udp_ports())


@dataclass
class Reservation:
    """A domain that is ours until `release`, or until this process ends however it ends."""

    domain: int
    _claim: socket.socket | None

    def release(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def reserve(wanted: int | None = None, *, join: bool = False) -> Reservation:
    """Reserves a domain: `wanted`, or any free one.

    Args:
        wanted: the domain to use; None picks a free one.
        join: share `wanted` with whoever uses it already.

    Raises:
        DomainBusy: `wanted` is in use, or none is free.
        InputError: `wanted` is out of range.
    """
    if wanted is None:
        for domain in random.sample(DOMAINS, len(DOMAINS)):
            claim = _claim(domain)
            if claim is not None:
                return Reservation(domain, claim)
        raise DomainBusy(
            f"All ROS domains from {DOMAINS[0]} to {DOMAINS[-1]} are in use. End some ROS programs."
        )
    if not 0 <= wanted <= DOMAINS[-1]:
        raise InputError(f"ROS domain {wanted} does not exist here; choose one from 0 to {DOMAINS[-1]}.")
    claim = _claim(wanted)
    if claim is None and not join:
        raise DomainBusy(
            f"ROS domain {wanted} is in use by another program on this machine. Leave --domain out to get a "
            "free one, choose another, or add --join to share it."
        )
    return Reservation(wanted, claim)


def _claim(domain: int) -> socket.socket | None:
    """Claims a domain that no participant uses, or returns None.

    The claim is an abstract Unix socket: the kernel drops it with this process, nothing is left on disk.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0dtvla/{os.getuid()}/domain/{domain}")
    except OSError:
        claim.close()
        return None
    if is_busy(domain):
        claim.close()
        return None
    return claim
