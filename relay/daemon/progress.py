"""What has been published and settled -> the LSN that is safe to flush. Pure: that nothing is lost is decided here."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from relay.errors import SourceError
from relay.wal.lsn import Lsn, format_lsn


class StreamGap(SourceError):
    """The stream does not follow the protocol's order."""

    hint = "Please report it, with the versions of PostgreSQL and the relay."


@dataclass(slots=True, eq=False)
class Transaction:
    """A transaction that has messages, while not all of them are settled, or while it is still being read.

    It stands in a chain with its neighbours. `end` also covers what came right after it and needs nothing any more.
    """

    progress: "Progress"
    commit_lsn: Lsn
    committed_at: datetime
    messages: int = 0
    """So many of its messages have been read."""
    unsettled: int = 0
    end: Lsn | None = None
    before: "Transaction | None" = None
    after: "Transaction | None" = None

    def settle(self) -> None:
        """One of its messages is confirmed, ignored, or parked for good."""
        if self.unsettled < 1:
            raise ValueError("more messages settled than published")
        self.unsettled -= 1
        if not self.unsettled and self.end is not None:
            self.progress.close(self)


class Progress:
    """The LSN that may be flushed, given what has been read, published and settled.

    Invariant: `safe` never passes the end of a transaction with an unsettled message, and never goes back.
    Transactions are read whole and in commit order. Memory is bounded by the number of messages in flight.
    """

    def __init__(self, confirmed: Lsn, advanced: Callable[[], None] | None = None) -> None:
        """`confirmed` is what the slot has confirmed already: a keepalive after a reconnect may lie below it.

        `advanced` is called whenever `safe` has grown.
        """
        self._safe = confirmed
        self._advanced = advanced
        self._open: Transaction | None = None
        self._first: Transaction | None = None
        self._last: Transaction | None = None

    @property
    def safe(self) -> Lsn:
        """Everything before this is settled."""
        return self._safe

    @property
    def transaction(self) -> Transaction | None:
        """The transaction that is being read."""
        return self._open

    @property
    def oldest_unsettled_commit_at(self) -> datetime | None:
        """When the oldest transaction with an unsettled message was committed, None when nothing waits."""
        return self._first.committed_at if self._first is not None and self._first.unsettled else None

    def begin(self, commit_lsn: Lsn, committed_at: datetime) -> Transaction:
        """A transaction begins to be read; `commit_lsn` is where its commit lies."""
        if self._open is not None:
            raise StreamGap(f"the transaction of {format_lsn(commit_lsn)} begins before the one before it has ended")
        self._open = Transaction(self, commit_lsn, committed_at)
        return self._open

    def publish(self) -> Transaction:
        """A message of the transaction being read goes out: settle what is returned once that is settled."""
        read = self._open
        if read is None:
            raise StreamGap("a row comes outside of a transaction")
        if self._last is not read:
            self._append(read)
        read.messages += 1
        read.unsettled += 1
        return read

    def commit(self, end: Lsn) -> None:
        """The transaction being read is complete; it ends before `end`."""
        if self._open is None:
            raise StreamGap("a commit comes outside of a transaction")
        read, self._open = self._open, None
        if self._last is read:
            read.end = end
            if not read.unsettled:
                self.close(read)
        else:
            self._pass(end)

    def keepalive(self, wal_end: Lsn) -> None:
        """Everything before `wal_end` has been sent to us. Means nothing while a transaction is being read."""
        if self._open is None:
            self._pass(wal_end)

    def close(self, transaction: Transaction) -> None:
        """Take a transaction that needs nothing any more out of the chain: whoever is before it answers for its end.

        Otherwise one message that stays unsettled would let everything behind it pile up.
        """
        end = transaction.end
        if transaction.unsettled or end is None:
            return
        if transaction.before is None:
            self._first = transaction.after
        else:
            transaction.before.after = transaction.after
            transaction.before.end = end
        if transaction.after is None:
            self._last = transaction.before
        else:
            transaction.after.before = transaction.before
        if transaction.before is None:
            self._advance(end)

    def _pass(self, end: Lsn) -> None:
        """Nothing to publish before `end`, except what waits already: then `end` is safe when that is settled."""
        if self._last is None:
            self._advance(end)
        else:
            self._last.end = max(self._last.end or end, end)

    def _append(self, transaction: Transaction) -> None:
        transaction.before, self._last = self._last, transaction
        if transaction.before is None:
            self._first = transaction
        else:
            transaction.before.after = transaction

    def _advance(self, end: Lsn) -> None:
        if end > self._safe:
            self._safe = end
            if self._advanced is not None:
                self._advanced()
