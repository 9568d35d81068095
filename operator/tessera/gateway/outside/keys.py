"""The keys with which the gateway asks outside providers, and the authorities that it trusts."""

import ssl
from collections.abc import Iterable, Mapping

from tessera.domain.gateway.directory import OfferedProvider
from tessera.domain.observed.providers import ProviderSecret


class ProviderKeys:
    """The keys of all providers, as their Secrets have them now.

    They stand nowhere else: not in a directory, a record, an error or a log.
    """

    def __init__(self) -> None:
        self._secrets: Mapping[str, ProviderSecret] = {}
        self._contexts: Mapping[str, ssl.SSLContext | None] = {}
        """By certificates, each made once; None where these cannot be read."""

    def update(self, secrets: Iterable[ProviderSecret]) -> None:
        """Take all Secrets that exist; the next request has the key of now."""
        self._secrets = {secret.name: secret for secret in secrets}
        certificates = {
            text for secret in self._secrets.values() for text in secret.authorities.values()
        }
        known = self._contexts
        self._contexts = {
            text: known[text] if text in known else _trusting(text) for text in certificates
        }

    def of(self, provider: OfferedProvider) -> str | None:
        """Return the key of a provider; None where its Secret or the field of it is missing."""
        named = provider.spec.secret
        secret = self._secrets.get(named.name)
        return None if secret is None else secret.keys.get(named.key)

    def tls(self, provider: OfferedProvider) -> ssl.SSLContext | bool | None:
        """Return what trusts the authorities of a provider; True for those of the gateway.

        None where its Secret has no certificates that can be read.
        """
        named = provider.spec.secret
        if named.ca_key is None:
            return True
        secret = self._secrets.get(named.name)
        certificates = secret and secret.authorities.get(named.ca_key)
        return self._contexts[certificates] if certificates else None


def _trusting(certificates: str) -> ssl.SSLContext | None:
    try:
        return ssl.create_default_context(cadata=certificates)
    except ssl.SSLError:
        return None
