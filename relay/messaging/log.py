"""What a service says about its messages."""

import logging

from relay.messaging.failures import History, described, summed_up
from relay.messaging.message import Unprocessable
from relay.messaging.retry import Trouble, trouble

logger = logging.getLogger(__name__)


class ServiceLog:
    """Log lines of one service. `action` is the stable key of a line, `words` are for a person."""

    def __init__(self, service: str) -> None:
        self._service = service

    def debug(self, action: str, words: str, **fields: object) -> None:
        """What happens with every message."""
        self._say(logging.DEBUG, action, words, fields)

    def info(self, action: str, words: str, **fields: object) -> None:
        """Something happened as it should, or mends itself."""
        self._say(logging.INFO, action, words, fields)

    def warning(self, action: str, words: str, **fields: object) -> None:
        """Something that others should see to."""
        self._say(logging.WARNING, action, words, fields)

    def error(self, action: str, words: str, error: Exception, **fields: object) -> None:
        """Somebody has to do something. `error` is told with its traceback, unless its sentence says everything."""
        self._say(logging.ERROR, action, words, fields, None if isinstance(error, Unprocessable) else error)

    def failed(self, subject: str, message_id: str, error: Exception, delay_s: float) -> None:
        """An attempt at a message failed, and there will be another one soon, in memory."""
        words = f"{subject} {message_id} is tried again: {described(error)}"
        fields: dict[str, object] = {"message_id": message_id, "delay_s": round(delay_s, 3)}
        match trouble(error):
            case Trouble.AWAY:
                self.warning("database_away", words, **fields)
            case Trouble.CONFLICT:
                self.info("transaction_conflict", words, **fields)
            case Trouble.FAULT:
                self.info("handler_failed", words, **fields)

    def put_off(self, subject: str, message_id: str, history: History, delay_s: float) -> None:
        """A message is out of the queue, and will be tried again after this time."""
        words = f"{subject} {message_id} is put off for {delay_s:.1f} s: {history[-1].error}"
        fields = {"message_id": message_id, "attempt": history[-1].attempt, "delay_s": round(delay_s, 3)}
        self.info("message_deferred", words, **fields)

    def dead(self, subject: str, message_id: str, history: History, error: Exception, *, overtakes: bool) -> None:
        """A message will not be tried any more unless somebody wants it to be."""
        waits = "" if overtakes else ", and what comes after it waits"
        words = f"{subject} {message_id} is dead{waits}: {summed_up(history)}"
        entries = [mishap.entry for mishap in history]
        self.error("message_dead", words, error, message_id=message_id, history=entries)

    def _say(
        self, level: int, action: str, words: str, fields: dict[str, object], error: BaseException | None = None
    ) -> None:
        logger.log(level, "%s", words, exc_info=error, extra={"action": action, "service": self._service, **fields})
