"""What the processes of a demo have logged, for whoever has to find out why they did not get on."""

from pathlib import Path

LAST_CHARS = 4000


def last_words(config: str | Path) -> str:
    """The ends of all logs, which lie beside the configuration."""
    logs = sorted(Path(config).parent.glob("*.log"))
    return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-LAST_CHARS:]}" for log in logs)
