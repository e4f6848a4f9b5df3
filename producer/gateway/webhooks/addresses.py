"""Where a webhook may lead: tenants name URLs, and must not reach through the gateway what they can't reach.

A name is resolved once, every address that it has is checked, and the connection is made to a checked
address: a name that is resolved again for the connection could lead elsewhere by then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

_resolvers: Final = ThreadPoolExecutor(8, thread_name_prefix="resolve")
"""Of their own: a name that takes long to resolve must not hold up what else is done in threads, the storage
above all."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Global addresses that a cloud answers on from within; other clouds' are link-local or private."""


class AddressRefused(Exception):
    """The URL leads to where no webhook may go, or nowhere."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system knows them.

    Raises:
        OSError: it has none.
    """
    asking = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_resolvers, asking)
    return [str(sockaddr[0]) for *_, sockaddr in found]


async def checked_address(host: str, port: int, *, private: bool, by: Resolve = resolve) -> str:
    """An address of a host that may be connected to.

    Args:
        private: allow every address.

    Raises:
        AddressRefused: any of its addresses is not for webhooks, or it has none.
    """
    try:
        texts = await by(host, port)
    except OSError as error:
        raise AddressRefused(f"{host} can't be resolved: {error.strerror or error}") from None
    if not texts:
        raise AddressRefused(f"{host} has no address")
    for text in texts:
        if not private and not is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise AddressRefused(
                f"{host} is {text}, which is not a public address; --private-webhooks lets webhooks go there"
            )
    return texts[0]


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the internet can reach."""
    if isinstance(address, ipaddress.IPv6Address):
        within = _within(address)
        if within is not None:
            return is_public(within)
        if address.is_site_local:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in _METADATA
    )


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which an IPv6 one leads."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
