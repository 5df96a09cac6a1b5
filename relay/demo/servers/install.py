"""Installs RabbitMQ where it is missing and somebody lets us."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from relay.demo.servers.host import COMMAND_S, ServerMissing, find_program
from relay.demo.servers.rabbitmq import HOW_TO_INSTALL, find_rabbitmq

PACKAGE = "rabbitmq-server"
INSTALL_S = 1800.0
"""How long the download and the installation may take: some 60 MB, on a slow line."""
LAST_LINES = 5

QUESTION = f"RabbitMQ is missing. Install the Debian package {PACKAGE}? [Y/n] "

SCRIPT = """\
set -u
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
# dpkg asks this file before it starts a service; 101 means no. Somebody else's answer stands.
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\\nexit 101\\n' > "$policy"
    chmod 755 "$policy"
fi
install() { apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$1"; }
known() { apt-cache show --no-all-versions "$1" > /dev/null 2>&1; }
# Lists of packages are fetched only when there are none, or when they are too old to be of use.
if known "$1" && install "$1"; then exit 0; fi
apt-get update && install "$1"
"""


def ensure_rabbitmq(interactive: bool, say: Callable[[str], None]) -> None:
    """See to it that rabbitmq-server is there; nothing if it is.

    On a terminal (`interactive`) it asks first, and sudo may ask for a password. Without one it installs as root, or
    by a sudo that asks nothing. The service of the package is not started. Raises ServerMissing, with what to install.
    """
    if find_rabbitmq() is not None:
        return
    privilege = _privilege(interactive)
    if privilege is None:
        raise _missing("it cannot be installed from here.")
    if interactive:
        say(QUESTION)
        if not _agreed():
            raise _missing("you do not want it installed.")
    say(f"Installing the Debian package {PACKAGE}, without starting its service. This may take some minutes.")
    _install(privilege)
    if find_rabbitmq() is None:
        raise _missing(f"the package {PACKAGE} did not bring it.")


def _privilege(interactive: bool) -> Sequence[str] | None:
    """What to put before a command so that root runs it; None when it cannot be done, or there is no apt-get."""
    if find_program("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ()
    if find_program("sudo") is None:
        return None
    if interactive:
        return ("sudo",)
    try:
        asked = subprocess.run(("sudo", "-n", "true"), stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        return None
    return ("sudo", "-n") if asked.returncode == 0 else None


def _agreed() -> bool:
    """The answer: yes by default, no at the end of the input."""
    answer = sys.stdin.readline()
    return answer != "" and answer.strip().lower() in ("", "y", "yes")


def _install(privilege: Sequence[str]) -> None:
    """Run the script, which does it all: so sudo asks once, and what it puts in place goes even if we do.

    sudo asks on the terminal itself. What apt-get says goes to a file, which outlives us, and is shown if it fails.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        installer = subprocess.Popen(
            (*privilege, "/bin/sh", "-c", SCRIPT, "sh", PACKAGE),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status = installer.wait(INSTALL_S)
        except subprocess.TimeoutExpired:  # to end dpkg in the middle of its work would leave a broken system
            raise _missing(f"its installation still runs after {INSTALL_S / 60:.0f} min.") from None
        if status != 0:
            output.seek(0)
            said = "\n".join(output.read().splitlines()[-LAST_LINES:])
            raise _missing(f"its installation failed:\n{said}")


def _missing(reason: str) -> ServerMissing:
    return ServerMissing(f"There is no rabbitmq-server on this machine, and {reason}", HOW_TO_INSTALL)
