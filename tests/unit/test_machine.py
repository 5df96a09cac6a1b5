"""What a fresh machine is told about the network: what pip of this one is told, as far as it makes sense elsewhere."""

from tests.support.machine import pip_environment, settings_of

LISTED = """\
:env:.index-url='https://from.the.environment/simple'
global.cert='/etc/ssl/some.pem'
global.index-url='https://from.a.file/simple'
install.find-links='/opt/wheels'
"""


def test_the_environment_wins_over_files() -> None:
    settings = dict(settings_of(LISTED))
    assert settings["index-url"] == "https://from.the.environment/simple"
    assert settings["cert"] == "/etc/ssl/some.pem"


def test_a_directory_of_this_machine_is_not_there_on_the_other() -> None:
    local = {"find-links": "/opt/wheels", "extra-index-url": "file:///opt/index https://mirror.example/simple"}
    assert pip_environment(local) == {"PIP_EXTRA_INDEX_URL": "https://mirror.example/simple"}


def test_what_is_not_said_is_not_passed_on() -> None:
    assert pip_environment({}) == {}
