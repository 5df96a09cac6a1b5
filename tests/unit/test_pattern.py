"""How settings name tables and columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wal.pattern import ColumnPattern, TablePattern
from relay.wal.publication import tables_publication
from relay.wal.table import TableName

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("public.customers", "public", "customers"),
        ("Public.Customers_2$", "public", "customers_2$"),
        ("sales.*", "sales", None),
        ('"Odd"."na.me"', "Odd", "na.me"),
        ('"Odd".*', "Odd", None),
        ('public."say ""hi"""', "public", 'say "hi"'),
        ('public."*"', "public", "*"),
        ("größe.ÄRA", "größe", "Ära"),
    ],
)
def test_a_table_is_named_as_in_sql(text: str, schema: str, name: str | None) -> None:
    assert TablePattern.parse(text) == (schema, name)


@given(names, names)
def test_every_name_can_be_said(schema: str, name: str) -> None:
    text = f"{quoted(schema)}.{quoted(name)}"
    assert TablePattern.parse(text) == (schema, name)
    assert ColumnPattern.parse(f"{text}.{quoted(name)}") == (TableName(schema, name), name)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no name at character 1"),
        ("customers", "is no table"),
        ("a.b.c", "is no table"),
        ("*", "is no table"),
        ("*.customers", "goes wrong at character 2"),
        ("a.*.*", "goes wrong at character 4"),
        ("a.b*", "goes wrong at character 4"),
        ("a..b", "no name at character 3"),
        ("a.", "no name at character 3"),
        ("a.my-table", "goes wrong at character 5"),
        ("a.2nd", "no name at character 3"),
        ('a."open', "no name at character 3"),
        ('a.""', "no name at character 3"),
        (" a.b", "no name at character 1"),
    ],
)
def test_what_names_no_table_is_refused_with_its_place(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TablePattern.parse(text)


@pytest.mark.parametrize(
    ("text", "table", "column", "covered"),
    [
        ("password", "public.customers", "password", True),
        ("password", "sales.orders", "password", True),
        ("PASSWORD", "sales.orders", "password", True),
        ("password", "public.customers", "Password", False),
        ('"Password"', "public.customers", "Password", True),
        ("public.customers.ssn", "public.customers", "ssn", True),
        ("public.customers.ssn", "public.orders", "ssn", False),
        ("public.customers.ssn", "sales.customers", "ssn", False),
    ],
)
def test_a_column_is_meant_in_one_table_or_in_all(text: str, table: str, column: str, covered: bool) -> None:
    assert ColumnPattern.parse(text).covers(TableName(*table.split(".")), column) is covered


@pytest.mark.parametrize("text", ["customers.ssn", "a.b.*", "*", "a.b.c.d", ""])
def test_what_names_no_column_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no column|no name"):
        ColumnPattern.parse(text)


def test_the_second_publication_is_named_after_the_first() -> None:
    assert tables_publication("relay_shop") == "relay_shop_tables"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_its_name_always_fits(name: str) -> None:
    assert 0 < len(tables_publication(name).encode()) <= 63
    assert tables_publication(name).endswith("_tables")


def test_long_names_stay_different() -> None:
    long = "x" * 62
    assert tables_publication(long + "a") != tables_publication(long + "b")
    assert len(tables_publication(long + "a").encode()) == 63
