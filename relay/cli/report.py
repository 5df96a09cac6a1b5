"""What the demo found, for a person and for a program."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from relay.cli.lag import render
from relay.demo.audit import Audit
from relay.wal.lag import Lag


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of so many orders, and how often each process was killed meanwhile."""

    orders: int
    kills: Mapping[str, int]
    audit: Audit
    lags: list[Lag]

    def as_json(self) -> dict[str, object]:
        """Everything."""
        lags = [asdict(lag) for lag in self.lags]
        kills = dict(self.kills)
        return {"orders": self.orders, "kills": kills, "ok": self.audit.ok, **asdict(self.audit), "lag": lags}

    def as_text(self) -> str:
        """A page."""
        audit = self.audit
        kills = [f"{count:>7}  {name}" for name, count in self.kills.items()]
        published = [f"{count:>7}  messages from {source}" for source, count in audit.published.items()]
        p50, p99 = audit.latency_p50_ms, audit.latency_p99_ms
        latency = "no order is approved" if p50 is None or p99 is None else f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        sections = {
            "Orders": audit.outcome_lines,
            "Kills": kills,
            "Until an order is approved": [f"  {latency}"],
            "Published": published,
            "Lag": [render(self.lags)],
            "Invariants": [str(invariant) for invariant in audit.invariants],
        }
        return "\n".join(line for title, lines in sections.items() if lines for line in ("", title, *lines))
