"""saga-relay: committed rows become RabbitMQ messages, and messages become sagas.

The package has two wings. The relay's reads PostgreSQL's write-ahead log and publishes: `cli`, `daemon`, `capture`,
`wal` and `broker`. The library's is what services import: `saga`, `messaging` and `broker`. They meet in the tables.
"""

from importlib.metadata import version

__version__ = version("saga-relay")
