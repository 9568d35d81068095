"""Where the engines of services may connect to, as the platform team sets it."""

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

from tessera.api.meta import DnsLabel, Wire


def _network(text: str) -> str:
    """Check that a text is a network; raise ValueError, which says what is wrong."""
    ip_network(text, strict=False)
    return text


Network = Annotated[
    str,
    Field(max_length=43, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"),
    AfterValidator(_network),
]


class EngineEgress(Wire):
    """Where the engines of services, and the Jobs that read and download their models, may connect
    to, where a network plugin enforces policies."""

    restricted: bool = True
    """Engines reach name servers and public addresses alone, for models on the hub: neither other
    pods and private networks, nor the API server and the metadata of a cloud. The same holds for
    the Jobs that read and download their models. At the ports of
    `platform.hubEndpoint` and `platform.httpsProxy` they reach private addresses as well. `false`
    lets them reach everything."""

    networks: Annotated[tuple[Network, ...], Field(max_length=64)] = ()
    """Private networks that engines reach as well, such as `10.20.0.0/16` of an object storage, or
    the address from which pods get the identity that reads a bucket."""

    namespaces: Annotated[tuple[DnsLabel, ...], Field(max_length=64)] = ()
    """Namespaces whose pods engines reach as well, such as that of a collector of traces."""
