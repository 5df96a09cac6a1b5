"""Changes of tables as Debezium's PostgreSQL connector writes them, for consumers that know its messages.

What is said here of Debezium was seen in the output of Debezium 3.6.3 with its JSON converter without schemas, and is
kept in tests/unit/golden. docs/envelope-debezium.md lists where this envelope differs from it, and why.
"""

from relay.capture.debezium.settings import DebeziumSettings
from relay.capture.debezium.writer import DebeziumWriter

__all__ = ["DebeziumSettings", "DebeziumWriter"]
