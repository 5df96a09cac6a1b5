"""The code on the pages of docs/, as it stands there."""

import re
from pathlib import Path
from types import SimpleNamespace

DOCS = Path(__file__).parents[2] / "docs"


def fenced(page: str, language: str) -> list[str]:
    """The blocks of code in a language, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def python_of(page: str) -> SimpleNamespace:
    """All the Python on a page, run as one module. Each call runs it anew."""
    names: dict[str, object] = {"__name__": page}
    for block in fenced(page, "python"):
        exec(compile(block, page, "exec"), names)  # noqa: S102 - it is ours, and this is what it is for
    return SimpleNamespace(**names)


def statements_of(page: str) -> list[list[str]]:
    """The statements of each block of SQL on a page, without comments, with :names as psycopg has them."""
    return [
        [
            re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement).strip()
            for statement in uncommented.split(";")
            if statement.strip()
        ]
        for uncommented in (re.sub(r"--.*$", "", block, flags=re.MULTILINE) for block in fenced(page, "sql"))
    ]
