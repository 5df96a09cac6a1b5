"""The health check of a container."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from relay.demo.servers.host import bound_socket
from relay.probe import ask


class Health(BaseHTTPRequestHandler):
    """/healthz is well, everything else is not."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b'{"path": "%s"}' % self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_success_is_healthy(url: str) -> None:
    assert ask(f"{url}/healthz") == (True, '{"path": "/healthz"}')


def test_another_answer_is_not_and_tells_why(url: str) -> None:
    assert ask(f"{url}/readyz") == (False, '{"path": "/readyz"}')


def test_nobody_at_the_address_is_not_healthy() -> None:
    with bound_socket(0) as taken:  # bound, and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/healthz"
        assert ask(url) == (False, f"{url}: [Errno 111] Connection refused")


@pytest.mark.parametrize(("path", "status"), [("/healthz", 0), ("/readyz", 1)])
def test_the_exit_status_is_for_docker(url: str, path: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-m", "relay.probe", url + path], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, path in done.stdout) == (status, True)
