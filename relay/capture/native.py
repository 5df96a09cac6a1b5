"""Changes of tables -> JSON: the body that a table capture sends unless another envelope is set.

docs/values.md says how values are written.
"""

from collections.abc import Sequence
from typing import Final

from relay.capture.change import Op, Rendered, RowChange, Shape
from relay.capture.message import CaptureError
from relay.capture.values import Encoder, Unreadable, encoder, json_string
from relay.wal.pgoutput import Row, Unchanged, Value

_NO_HEADERS: Final = b"{}"
_NULL: Final = b"null"


class NativeWriter:
    """Writes `{"op", "before", "after", "unchanged"}`, one body a change, as compact JSON.

    - `before` is null when nothing is known of the old row, and has the key's columns only when no more is known.
    - `after` leaves out the columns that an UPDATE left alone and whose values are not known (TOAST), and `unchanged`
      names them.

    Columns are in the order of the table. Raises CaptureError, with table and column, when a value cannot be read.
    """

    def __init__(self) -> None:
        self._plans: dict[int, _Plan] = {}
        """By oid of the table, for its newest shape."""

    def write(self, change: RowChange) -> Sequence[Rendered]:
        """One body for one change."""
        plan = self._plans.get(change.shape.oid)
        if plan is None or (plan.shape is not change.shape and plan.shape != change.shape):
            plan = self._plans[change.shape.oid] = _Plan(change.shape)
        after = change.after
        before = _NULL if change.before is None else plan.row(change.before, whole=change.before_is_whole)
        payload = b'{"op":"%b","before":%b,"after":%b,"unchanged":[%b]}' % (
            _OPS[change.op],
            before,
            _NULL if after is None else plan.row(after, whole=True),
            b"" if after is None or Unchanged.TOAST not in after else plan.unchanged(after),
        )
        return (Rendered(_NO_HEADERS, payload),)


_OPS: Final = {op: op.encode() for op in Op}


class _Plan:
    """How rows of one shape are written."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        names = [json_string(column.name).encode() for column in shape.columns]
        encoders = [encoder(column.type) for column in shape.columns]
        self._names = names
        self._all = [(place, names[place] + b":", encoders[place]) for place in range(len(names))]
        self._key = [self._all[place] for place in shape.key]

    def row(self, row: Row, *, whole: bool) -> bytes:
        """An object of the columns that are known: all, or those of the key."""
        parts: list[bytes] = []
        for place, prefix, encode in self._all if whole else self._key:
            value = row[place]
            if value is None:
                parts.append(prefix + _NULL)
            elif value is not Unchanged.TOAST:
                parts.append(prefix + self._value(place, value, encode))
        return b"{%b}" % b",".join(parts)

    def unchanged(self, row: Row) -> bytes:
        """The names of the columns whose values PostgreSQL did not send."""
        return b",".join(name for name, value in zip(self._names, row, strict=True) if value is Unchanged.TOAST)

    def _value(self, place: int, value: Value, encode: Encoder) -> bytes:
        if not isinstance(value, bytes):
            raise CaptureError(f"column {self.shape.columns[place].name} of {self.shape} was not sent as text")
        try:
            return encode(value)
        except CaptureError as error:
            raise Unreadable(f"column {self.shape.columns[place].name} of {self.shape}: {error}") from None


def aggregate_id(shape: Shape, row: Row) -> str:
    """Which row it is: the value of its key as PostgreSQL writes it, empty when there is none.

    The values of a key of several columns are joined by slashes, `/` and `%` in them as `%2F` and `%25`; a null is
    empty. Raises CaptureError when a value of the key is not there.
    """
    values = [_key_text(shape, place, row[place]) for place in shape.key]
    if len(values) == 1:
        return values[0]
    return "/".join([value.replace("%", "%25").replace("/", "%2F") for value in values])


def _key_text(shape: Shape, place: int, value: Value) -> str:
    if value is None:
        return ""
    if not isinstance(value, bytes):
        raise CaptureError(f"column {shape.columns[place].name} of {shape} is part of the key and was not sent as text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Unreadable(f"column {shape.columns[place].name} of {shape} is part of the key and not UTF-8") from None
