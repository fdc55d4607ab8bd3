"""The right to act, held by one controller at a time."""

import time

from services.errors import Fenced
from services.store.records import Lease
from services.store.store import JobStore

LEASE = "controller"


class Leadership:
    """A lease that is taken, kept while a long tick goes on, and given back.

    The lease's epoch fences what is written. What is done outside the database is fenced only by asking for the lease
    right before it, and is made so that a second time does no harm.
    """

    def __init__(self, store: JobStore, holder: str, ttl_s: float) -> None:
        self.holder = holder
        self._store = store
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._renewed = 0.0

    @property
    def lease(self) -> Lease:
        """The lease as it was last renewed.

        Raises:
            Fenced: it is another's.
        """
        if self._lease is None:
            raise Fenced(f"{self.holder} does not hold the lease")
        return self._lease

    def take(self) -> bool:
        """Renew the lease, or take it if it is free; False while another holds it."""
        self._lease, self._renewed = None, time.monotonic()
        self._lease = self._store.acquire_lease(LEASE, self.holder, self._ttl_s)
        return self._lease is not None

    def keep(self) -> None:
        """Renew the lease if a good part of its time is over.

        Raises:
            Fenced: another has taken it.
        """
        if time.monotonic() - self._renewed > self._ttl_s / 4:
            self.confirm()

    def confirm(self) -> None:
        """Make sure that the lease is still held, as before something that can't be undone.

        Raises:
            Fenced: another has taken it.
        """
        epoch = self.lease.epoch
        if not self.take() or self.lease.epoch != epoch:
            self._lease = None
            raise Fenced(f"{self.holder} was replaced as the holder of epoch {epoch}")

    def drop(self) -> None:
        """Forget the lease, now that it is another's."""
        self._lease = None

    def release(self) -> None:
        """Give the lease back, so that another need not wait until it expires."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._store.release_lease(lease)
