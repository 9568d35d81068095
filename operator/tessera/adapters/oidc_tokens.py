"""Verifies OIDC tokens by the published keys of their issuers."""

import asyncio
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt

from tessera.domain.gateway.oidc import OidcIssuer
from tessera.ports import PortError

_MAX_BYTES = 256 * 1024
_FETCH_SECONDS = 5.0
_FRESH_SECONDS = 3600.0
# While an issuer does not answer, its known keys go on so long.
_STALE_SECONDS = 86_400.0
# Tokens with unknown keys cannot make the gateway ask an issuer more often.
_MIN_FETCH_INTERVAL_SECONDS = 30.0
_LEEWAY_SECONDS = 30.0


class IssuerError(PortError):
    """The keys of an issuer cannot be read."""


class InvalidTokenError(PortError):
    """The token is not of the issuer, not for this audience, or expired."""


def unverified_issuer(token: str) -> str | None:
    """Return who claims to have issued a token; None for anything that is no JWT."""
    return _unverified(token, "iss")


def unverified_subject(token: str) -> str | None:
    """Return whose token it claims to be; None for anything that is no JWT."""
    return _unverified(token, "sub")


def claims_audience(token: str, audience: str) -> bool:
    """Return whether a token claims to be for an audience; False for anything that is no JWT."""
    named = _unverified_claims(token).get("aud")
    return audience in named if isinstance(named, list) else audience == named


def _unverified(token: str, claim: str) -> str | None:
    text = _unverified_claims(token).get(claim)
    return text if isinstance(text, str) else None


def _unverified_claims(token: str) -> Mapping[str, Any]:
    # It costs a tenth of what a whole decoding does, since strangers send what they like.
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


class OidcTokens:
    """Tokens of one issuer."""

    def __init__(self, issuer: OidcIssuer, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.issuer = issuer
        self._monotonic = monotonic
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def verify(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token; raises InvalidTokenError or IssuerError."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self.issuer.algorithms:
                raise InvalidTokenError("the algorithm is not accepted")
            key = await self._key(str(header.get("kid", "")))
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=self.issuer.audience,
                issuer=self.issuer.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise InvalidTokenError(type(error).__name__) from error
        return claims

    async def _key(self, key_id: str) -> jwt.PyJWK:
        if key_id in self._keys and self._monotonic() - self._fetched_at < _FRESH_SECONDS:
            # It waits for no unknown key that is asked for meanwhile.
            return self._keys[key_id]
        async with self._fetching:
            age = self._monotonic() - self._fetched_at
            may_try = self._monotonic() - self._tried_at >= _MIN_FETCH_INTERVAL_SECONDS
            if may_try and (age >= _FRESH_SECONDS or key_id not in self._keys):
                await self._fetch()
            if self._monotonic() - self._fetched_at >= _STALE_SECONDS:
                raise IssuerError(f"{self.issuer.issuer}: the keys cannot be read")
        try:
            return self._keys[key_id]
        except KeyError as error:
            raise InvalidTokenError("its key is unknown") from error

    async def _fetch(self) -> None:
        """Read the keys again; on failure the known ones stay."""
        self._tried_at = self._monotonic()
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            ):
                keys = _parse_keys(await _read(session, await self._jwks_url(session)))
        except (aiohttp.ClientError, TimeoutError, OSError, IssuerError):
            return
        self._keys, self._fetched_at = keys, self._monotonic()

    async def _jwks_url(self, session: aiohttp.ClientSession) -> str:
        if self.issuer.jwks_url is not None:
            return self.issuer.jwks_url
        base = self.issuer.issuer.rstrip("/")
        discovered = await _read(session, f"{base}/.well-known/openid-configuration")
        url = discovered.get("jwks_uri")
        same_scheme = isinstance(url, str) and urlsplit(url).scheme == urlsplit(base).scheme
        if discovered.get("issuer") != self.issuer.issuer or not same_scheme:
            raise IssuerError(f"{self.issuer.issuer}: its discovery document is of another issuer")
        return str(url)


async def _read(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        response.raise_for_status()
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > _MAX_BYTES:
                raise IssuerError(f"{url}: more than {_MAX_BYTES // 1024} KiB")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IssuerError(f"{url}: no JSON") from error
    if not isinstance(document, dict):
        raise IssuerError(f"{url}: no JSON object")
    return document


def _parse_keys(document: Mapping[str, Any]) -> Mapping[str, jwt.PyJWK]:
    """Return the signature keys by their ids; those of unknown kinds are left out."""
    entries = document.get("keys")
    keys = {}
    for entry in entries if isinstance(entries, list) else ():
        try:
            if entry.get("use", "sig") == "sig":
                keys[str(entry.get("kid", ""))] = jwt.PyJWK.from_dict(entry)
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError):
            continue
    return keys
