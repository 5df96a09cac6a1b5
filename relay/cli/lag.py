"""`relay lag`."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from relay.cli.options import OutputFormat, config_option, dsn_option, format_option, load_settings
from relay.cli.sources import Round
from relay.cli.table import columns
from relay.config import Settings, SourceSettings
from relay.errors import ExitCode
from relay.wal.lag import Lag, measure

REFRESH_S: Final = 2.0

_HEADINGS: Final = (
    "SOURCE", "SLOT", "ACTIVE", "WAL STATUS", "CURRENT LSN", "CONFIRMED LSN", "LAG", "LAG S", "RETAINED", "SAFE",
)  # fmt: skip


@click.command()
@config_option
@dsn_option
@format_option
@click.option(
    "--watch",
    is_flag=True,
    envvar="RELAY_WATCH",
    show_envvar=True,
    help=f"Show it again every {REFRESH_S:g} s, until Ctrl-C.",
)
def lag(config: Path | None, dsn: str | None, output: OutputFormat, watch: bool) -> int:
    """Show how far behind each source is. Asks the databases alone; no relay need be running.

    LAG counts all WAL that is not confirmed yet; LAG S is the age of the oldest commit that is not confirmed, 0 when
    nothing is outstanding; RETAINED is the WAL that PostgreSQL keeps for the slot; SAFE is what may still be written
    before it gives the slot up.

    JSON is one list, with an object per source. A source that cannot be asked does not hide the others; the exit
    status is 3 then.
    """
    settings = load_settings(config, dsn)
    code = _show(settings, output)
    with suppress(KeyboardInterrupt):  # the way to end --watch
        while watch:
            time.sleep(REFRESH_S)
            if output == "table":
                click.clear()
            code = _show(settings, output)
    return code


def _show(settings: Settings, output: OutputFormat) -> ExitCode:
    asked = Round()
    lags = [lag for _, lag in asked.each(settings.source, _measured)]
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in lags]))
    elif lags:
        click.echo(render(lags))
    return asked.tell()


def _measured(source: SourceSettings) -> Lag:
    return measure(source.name, source.dsn.get_secret_value(), source.slot)


def render(lags: Iterable[Lag]) -> str:
    """A table with a line a source."""
    return columns(
        _HEADINGS,
        [
            (
                lag.source,
                lag.slot,
                "yes" if lag.active else "no",
                lag.wal_status or "-",
                lag.current_wal_lsn,
                lag.confirmed_flush_lsn or "-",
                _size(lag.lag_bytes),
                "-" if lag.lag_seconds is None else f"{lag.lag_seconds:.1f}",
                _size(lag.retained_wal_bytes),
                "unlimited" if lag.safe_wal_bytes is None else _size(lag.safe_wal_bytes),
            )
            for lag in lags
        ],
    )


def _size(count: int | None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return "-"
    size, units = float(count), iter(("B", "kB", "MB", "GB"))
    for unit in units:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
