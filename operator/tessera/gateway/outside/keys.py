"""The keys with which the gateway asks outside providers."""

from collections.abc import Iterable, Mapping

from tessera.domain.gateway.directory import OfferedProvider
from tessera.domain.observed.providers import ProviderSecret


class ProviderKeys:
    """The keys of all providers, as their Secrets have them now.

    They stand nowhere else: not in a directory, a record, an error or a log.
    """

    def __init__(self) -> None:
        self._secrets: Mapping[str, Mapping[str, str]] = {}

    def update(self, secrets: Iterable[ProviderSecret]) -> None:
        """Take all Secrets that exist; the next request has the key of now."""
        self._secrets = {secret.name: secret.keys for secret in secrets}

    def of(self, provider: OfferedProvider) -> str | None:
        """Return the key of a provider; None where its Secret or the field of it is missing."""
        secret = provider.spec.secret
        return self._secrets.get(secret.name, {}).get(secret.key)
