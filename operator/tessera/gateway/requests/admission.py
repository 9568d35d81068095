"""What requests are judged by, kept up to date with the last directory."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tessera.adapters.clock import CLOCK, Clock
from tessera.domain.gateway.directory import Directory, ModelChanges, model_changes
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.identify.senders import Identifier, Senders
from tessera.gateway.queue.places import Places
from tessera.gateway.reserve.limits import Reservations
from tessera.gateway.resolve.models import Models

_MAX_REVOKED_KEYS = 10_000
_BOUNDS = QueueBounds()


class Admission:
    """The stations that a directory changes."""

    def __init__(
        self,
        identifier: Identifier,
        borrow: Callable[[BorrowRequest], Awaitable[bool]],
        wake: Callable[[], None],
        *,
        bounds: QueueBounds = _BOUNDS,
        clock: Clock = CLOCK,
    ) -> None:
        """Take `borrow`, which exchanges portions of limits with the accounts.

        It returns False if the answer did not come. `wake` hears of requests for services that
        sleep.
        """
        self.clock = clock
        """What times everything about a request."""
        self.senders = Senders(identifier)
        self.models = Models(self.senders)
        self.places = Places(self.senders, wake, bounds, clock)
        self.reservations = Reservations(self.places.replicas, borrow, clock)
        self.replicas, self.queues = self.places.replicas, self.places.queues
        self.demand, self.arrivals = self.places.demand, self.places.arrivals
        self.limits = self.reservations.limits

    def update(self, directory: Directory) -> ModelChanges:
        """Judge by this directory from now on; return which models differ from the last one's."""
        before = self.senders.directory
        self.senders.directory = _with_revoked_keys(directory, before)
        changes = model_changes(before.models, directory.models)
        are_others = _without_models(before) != _without_models(directory)
        # A key may have other limits now; the same keys are the same object.
        are_keys = directory.keys is not before.keys
        self.models.update(self.senders.directory, changes, forget=are_others)
        self.reservations.update(self.senders.directory, changes, forget=are_others or are_keys)
        self.places.update(changes)
        return changes


def _without_models(directory: Directory) -> Directory:
    """Return what is judged once for many requests; what is lent changes while they come."""
    tenants = {
        name: replace(tenant, outside=()) if tenant.outside else tenant
        for name, tenant in directory.tenants.items()
    }
    return replace(
        directory, models=(), keys={}, revoked_keys={}, tenantless_keys={}, tenants=tenants
    )


def _with_revoked_keys(directory: Directory, last: Directory) -> Directory:
    """Remember the names of the keys that the directory before had."""
    if directory.keys is last.keys:
        return replace(directory, revoked_keys=last.revoked_keys)
    known = {**last.revoked_keys, **last.keys}
    revoked = [(digest, key) for digest, key in known.items() if digest not in directory.keys]
    return replace(directory, revoked_keys=dict(revoked[-_MAX_REVOKED_KEYS:]))
