"""What has been published and settled -> the LSN that is safe to flush. Pure: promise 1 of the relay is kept here."""

from dataclasses import dataclass
from datetime import datetime

from relay.wal.lsn import Lsn


@dataclass(slots=True, eq=False)
class Transaction:
    """A transaction that has messages, while not all of them are settled, or while it is still being read.

    It stands in a chain with its neighbours. `end` also covers what came right after it and needs nothing any more.
    """

    committed_at: datetime
    unsettled: int = 0
    end: Lsn | None = None
    before: "Transaction | None" = None
    after: "Transaction | None" = None


class Progress:
    """The LSN that may be flushed, given what has been read, published and settled.

    Invariant: `safe` never passes the end of a transaction with an unsettled message, and never goes back.
    Transactions are read whole and in commit order. Memory is bounded by the number of messages in flight.
    """

    def __init__(self, confirmed: Lsn) -> None:
        """`confirmed` is what the slot has confirmed already: a keepalive after a reconnect may lie below it."""
        self._safe = confirmed
        self._open: Transaction | None = None
        self._first: Transaction | None = None
        self._last: Transaction | None = None

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
        return self._first.committed_at if self._first is not None and self._first.unsettled else None

    def begin(self, committed_at: datetime) -> None:
        """A transaction begins to be read."""
        if self._open is not None:
            raise ValueError("a transaction is being read already")
        self._open = Transaction(committed_at)

    def publish(self) -> Transaction:
        """A message of the transaction being read goes out; give what is returned to `settle` once it is settled."""
        if self._open is None:
            raise ValueError("no transaction is being read")
        if self._last is not self._open:
            self._append(self._open)
        self._open.unsettled += 1
        return self._open

    def settle(self, transaction: Transaction) -> None:
        """One message of that transaction is confirmed, or parked for good."""
        if transaction.unsettled < 1:
            raise ValueError("more messages settled than published")
        transaction.unsettled -= 1
        self._close(transaction)

    def commit(self, end: Lsn) -> None:
        """The transaction being read is complete; it ends before `end`."""
        if self._open is None:
            raise ValueError("no transaction is being read")
        read, self._open = self._open, None
        if self._last is read:
            read.end = end
            self._close(read)
        else:
            self._pass(end)

    def keepalive(self, wal_end: Lsn) -> None:
        """Everything before `wal_end` has been sent to us. Means nothing while a transaction is being read."""
        if self._open is None:
            self._pass(wal_end)

    def _pass(self, end: Lsn) -> None:
        """Nothing to publish before `end`, except what waits already: then `end` is safe when that is settled."""
        if self._last is None:
            self._safe = max(self._safe, end)
        else:
            self._last.end = max(self._last.end or end, end)

    def _append(self, transaction: Transaction) -> None:
        transaction.before, self._last = self._last, transaction
        if transaction.before is None:
            self._first = transaction
        else:
            transaction.before.after = transaction

    def _close(self, transaction: Transaction) -> None:
        """Take a transaction that needs nothing any more out of the chain: whoever is before it answers for its end.

        Otherwise one message that stays unsettled would let everything behind it pile up.
        """
        if transaction.unsettled or transaction.end is None:
            return
        if transaction.before is None:
            self._first = transaction.after
            self._safe = max(self._safe, transaction.end)
        else:
            transaction.before.after = transaction.after
            transaction.before.end = transaction.end
        if transaction.after is None:
            self._last = transaction.before
        else:
            transaction.after.before = transaction.before
