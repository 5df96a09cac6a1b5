"""`python -m relay.probe URL`: the health check of a container, in which there is no curl.

Prints what the address answers. Exit status 0 when that is a success, 1 when it is not, or when nobody answers.
"""

import sys
from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 2.0
"""How long an answer may take. Less than what Docker gives a check, so that it is told why it failed."""


def ask(url: str) -> tuple[bool, str]:
    """Whether the answer is a success, and what it says."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return answer.status < 400, answer.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return False, f"{url}: {error or type(error).__name__}"
    finally:
        connection.close()


if __name__ == "__main__":
    healthy, words = ask(sys.argv[1])
    print(words)
    sys.exit(not healthy)
