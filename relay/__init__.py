"""saga-relay: committed rows become RabbitMQ messages, and messages become sagas.

The package has two wings. The relay's reads PostgreSQL's write-ahead log and publishes: `cli`, `daemon`, `capture`,
`wal` and `broker`. The library's is what services import: `saga`, `messaging` and `broker`. They meet in the tables.
"""

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, when it is asked for: to look it up takes longer than a health check of a container may."""
    if name == "__version__":
        from importlib.metadata import version

        return version("saga-relay")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
