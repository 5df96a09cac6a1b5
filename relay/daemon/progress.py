"""What has been published and settled -> the LSN that is safe to flush. Pure: promise 1 of the relay is kept here."""

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from relay.wal.lsn import Lsn


@dataclass(slots=True, eq=False)
class Transaction:
    """A transaction that has messages, while not all of them are settled, or while it is still being read."""

    committed_at: datetime
    unsettled: int = 0
    end: Lsn | None = None


class Progress:
    """The LSN that may be flushed, given what has been read, published and settled.

    Invariant: `safe` never passes the end of a transaction with an unsettled message, and never goes back.
    Transactions are read whole and in commit order. Memory is bounded by the number of messages in flight.
    """

    def __init__(self, confirmed: Lsn) -> None:
        """`confirmed` is what the slot has confirmed already: a keepalive after a reconnect may lie below it."""
        self._safe = confirmed
        self._open: Transaction | None = None
        self._unsettled: deque[Transaction] = deque()

    @property
    def safe(self) -> Lsn:
        """Everything before this is settled."""
        return self._safe

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is being read."""
        return self._open is not None

    @property
    def oldest_unsettled_commit_at(self) -> datetime | None:
        """When the oldest transaction with an unsettled message was committed, None when nothing waits."""
        return next((waiting.committed_at for waiting in self._unsettled if waiting.unsettled), None)

    def begin(self, committed_at: datetime) -> None:
        """A transaction begins to be read."""
        self._open = Transaction(committed_at)

    def publish(self) -> Transaction:
        """A message of the transaction being read goes out; give what is returned to `settle` once it is settled."""
        if self._open is None:
            raise ValueError("no transaction is being read")
        if not self._unsettled or self._unsettled[-1] is not self._open:
            self._unsettled.append(self._open)
        self._open.unsettled += 1
        return self._open

    def settle(self, transaction: Transaction) -> None:
        """One message of that transaction is confirmed, or parked for good."""
        if transaction.unsettled < 1:
            raise ValueError("more messages settled than published")
        transaction.unsettled -= 1
        self._advance()

    def commit(self, end: Lsn) -> None:
        """The transaction being read is complete; it ends before `end`."""
        if self._open is None:
            raise ValueError("no transaction is being read")
        read, self._open = self._open, None
        if self._unsettled and self._unsettled[-1] is read:
            read.end = end
            self._advance()
        else:
            self._pass(end)

    def keepalive(self, wal_end: Lsn) -> None:
        """Everything before `wal_end` has been sent to us. Means nothing while a transaction is being read."""
        if self._open is None:
            self._pass(wal_end)

    def _pass(self, end: Lsn) -> None:
        """Nothing to publish before `end`, except what waits already: then `end` is safe when that is settled."""
        if self._unsettled:
            last = self._unsettled[-1]
            last.end = max(end, last.end or end)
        else:
            self._safe = max(self._safe, end)

    def _advance(self) -> None:
        while self._unsettled:
            first = self._unsettled[0]
            if first.unsettled or first.end is None:
                return
            self._safe = max(self._safe, first.end)
            self._unsettled.popleft()
