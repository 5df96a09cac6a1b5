"""Every type of a real server, from its text to JSON and back: nothing of a value is lost."""

import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import cast

import psycopg
import pytest
from psycopg import sql

from relay.capture.values import encoder
from relay.demo.access import RELAY
from relay.wal.catalog import load_types
from relay.wal.connection import connect, prepared
from relay.wal.pgtype import Category, Field, PgType, unknown
from tests.support.database import Database, Databases

HAS_INFINITE_INTERVALS = 170000


def quoted(text: str | None, null: str) -> str:
    """Within an array, a composite value or an hstore."""
    if text is None:
        return null
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


WORDS = (
    *("", "a", "NULL", "null", 'say "hi"', "back\\slash", "a,b;c", "{}", "(,)", " padded "),
    *("\n\t\x01\x7f", "é 日本 🐘 \u2028"),
)
TIMES = ("00:00:00", "08:09:10", "12:34:56.789012", "12:34:56.5", "23:59:59.999999", "24:00:00")
DAYS = ("2024-02-29", "0001-01-01", "0001-12-31 BC", "0044-03-15 BC", "4714-11-24 BC", "9999-12-31", "10000-01-01")
STAMPS = (
    "2024-02-29 12:34:56.789012",
    "0044-03-15 12:00:00.000001 BC",
    "4714-11-24 00:00:00 BC",
    "10000-01-01 00:00:00",
    "294276-12-31 23:59:59.999999",
    "infinity",
    "-infinity",
)
INTERVALS = (
    "0",
    "1 year 2 mons 3 days 04:05:06.5",
    "-1 years -2 mons +3 days -04:05:06.000001",
    "1 year -3 days 00:00:01",
    "-14 mons",
    "1 day -00:00:00.000001",
    "00:00:59.999999",
    "-00:01",
    "1000000:00:00",
    "178000000 years",
    "-178000000 years",
    "2147483647 mons -2147483648 days 2562047788:00:54.775807",
    "-2147483648 mons 2147483647 days -2562047788:00:54.775807",
)
JSONS = ("{}", "true", '{"a":[1,2.50,null,"é"],"b":{"c":"d\\"e"}}', "12345678901234567890.12345678901234567890", '"s"')

EXAMPLES: dict[str, Sequence[str]] = {
    "bool": ("t", "f"),
    "bytea": ("", "\\x00", "\\xdeadbeef", "\\x" + bytes(range(256)).hex()),
    '"char"': ("a", "", '"', "\\"),
    "name": (*WORDS, "x" * 63),
    "text": (*WORDS, "long " * 20_000),
    "varchar": WORDS,
    "varchar(3)": ("", "abc"),
    "bpchar": ("a", "a  "),
    "char(5)": ("", "a", 'a"b'),
    "refcursor": ("cursor",),
    "int2": ("0", "-32768", "32767"),
    "int4": ("0", "-2147483648", "2147483647"),
    "int8": ("0", "-9223372036854775808", "9223372036854775807", "9007199254740993"),
    "oid": ("0", "4294967295"),
    "xid": ("0", "4294967295"),
    "cid": ("0", "4294967295"),
    "xid8": ("0", "18446744073709551615"),
    "tid": ("(0,1)", "(4294967294,65535)"),
    "int2vector": ("", "1 -2 3"),
    "oidvector": ("", "1 4294967295"),
    "numeric": (
        *("0", "-0.000", "1.50", "123456789012345678901234567890.123456789", "9007199254740993"),
        *("1e131071", "1e-16383", "-1e-16383", "NaN", "Infinity", "-Infinity"),
    ),
    "numeric(10,2)": ("1.5", "-99999999.99", "NaN"),
    "float4": ("0", "-0", "0.1", "1e20", "-3.4028235e38", "1e-45", "16777217", "NaN", "Infinity", "-Infinity"),
    "float8": (
        *("0", "-0", "0.1", "1e20", "1e-7", "123456789012345680", "1.7976931348623157e308", "5e-324"),
        *("9007199254740993", "NaN", "Infinity", "-Infinity"),
    ),
    "money": ("0", "12.34", "-92233720368547758.08", "92233720368547758.07"),
    "date": (*DAYS, "5874897-12-31", "infinity", "-infinity"),
    "time": TIMES,
    "time(0)": ("08:09:10",),
    "timetz": ("08:09:10+02", "00:00:00+15:59:59", "24:00:00-15:59", "12:00:00.5-03:30", "12:00:00+00"),
    "timestamp": STAMPS,
    "timestamptz": (*STAMPS, "2024-02-29 12:34:56.789012+05:30"),
    "interval": INTERVALS,
    "uuid": ("00000000-0000-0000-0000-000000000000", "0197f2b0-1111-7222-8333-444455556666"),
    "inet": ("192.168.0.1", "192.168.0.1/24", "::ffff:1.2.3.4", "2001:db8::1/64"),
    "cidr": ("192.168.0.0/24", "2001:db8::/32"),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "bit": ("0", "1"),
    "bit(10)": ("1010101010",),
    "varbit": ("", "1", "101" * 100),
    "json": JSONS,
    "jsonb": JSONS,
    "jsonpath": ('$."a"[*]?(@ > 1)',),
    "xml": ('<a>&amp;"é</a>', ""),
    "point": ("(1.5,-0)", "(NaN,Infinity)", "(5e-324,1e20)"),
    "line": ("{1,-1,0.5}",),
    "lseg": ("[(0,0),(1,2.5)]",),
    "box": ("(2,2),(1,1)", "(1e300,0),(-1,-Infinity)"),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1))"),
    "polygon": ("((0,0),(1,1),(1,0))",),
    "circle": ("<(1,2),3>",),
    "tsvector": ("", "'a':1A 'it''s':2,3B '\"':4"),
    "tsquery": ("", "'a' & !( 'b':* | 'it''s' )"),
    "pg_lsn": ("0/0", "FFFFFFFF/FFFFFFFF"),
    "pg_snapshot": ("10:20:10,14,15",),
    "txid_snapshot": ("10:20:10,14,15",),
    "aclitem": (f"{RELAY}=arw*/{RELAY}", f"=r/{RELAY}"),
    "regproc": ("-", "pg_typeof"),
    "regprocedure": ("-", "abs(integer)"),
    "regoper": ("0", "||/"),
    "regoperator": ("0", "+(integer,integer)"),
    "regclass": ("-", "pg_class"),
    "regtype": ("-", "timestamp with time zone"),
    "regrole": ("-", RELAY),
    "regnamespace": ("-", "pg_catalog"),
    "regconfig": ("-", "english"),
    "regdictionary": ("-", "simple"),
    "regcollation": ("-", '"C"'),
    "int4range": ("empty", "(,)", "[1,10)", "[-2147483648,2147483647)"),
    "int8range": ("empty", "[-9223372036854775808,9223372036854775807)"),
    "numrange": ("(1.50,NaN]", "[-Infinity,1e30)"),
    "daterange": ("[0044-03-15 BC,infinity)", "(,2024-02-29)"),
    "tsrange": ('["2024-02-29 12:34:56.789012",)',),
    "tstzrange": ('(-infinity,"2024-02-29 12:34:56.789012+00"]',),
    "int4multirange": ("{}", "{[1,2),[5,)}"),
    "int8multirange": ("{[1,2),[5,9223372036854775807)}",),
    "nummultirange": ("{(,1.50],[2.0,2.0]}",),
    "datemultirange": ("{[0044-03-15 BC,2024-02-29)}",),
    "tsmultirange": ('{["2024-02-29 12:34:56",)}',),
    "tstzmultirange": ('{["2024-02-29 12:34:56+00","2024-03-01 00:00:00+00")}',),
}
"""Values of every built-in type, by its name in SQL."""

NO_VALUES = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}
"""Built-in types that take no values from anybody: PostgreSQL keeps statistics, indexes and expressions in them."""

OWN_TYPES = """
    CREATE EXTENSION hstore;
    CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'ha,ppy', '');
    CREATE DOMAIN positive AS int8 CHECK (value > 0);
    CREATE DOMAIN price AS numeric(10,2);
    CREATE DOMAIN prices AS price[];
    CREATE TYPE place AS (street text, "the ""no"" of it" int4, moods mood[], at timestamptz);
    CREATE TYPE trip AS (stops place[], home place, tags hstore, paid price);
    CREATE TYPE nothing AS ();
    CREATE TYPE price_range AS RANGE (subtype = price);
    CREATE TYPE span AS RANGE (subtype = place);
"""

PLACES = ("(x,1,,)", r'("a, ""b"" \\",2,{sad},)', "(NULL,3,,)")
STOPS = f"{{{quoted(PLACES[0], '')},NULL,{quoted(PLACES[1], '')}}}"
TAGS = r'"k"=>"v, \"w\"", "NULL"=>NULL'

OWN_EXAMPLES: dict[str, Sequence[str]] = {
    "mood": ("sad", 'so "so"', "ha,ppy", ""),
    "citext": WORDS,
    "positive": ("1", "9223372036854775807"),
    "price": ("1.5", "-99999999.99"),
    "prices": ("{}", "{1.5,NULL,2}"),
    "hstore": ("", '"a"=>"1", "b"=>NULL, "c d"=>"NULL", "q\\"uo"=>"\\\\", "e"=>"", ""=>"é, \\"=>\\""'),
    "place": (
        "(,,,)",
        '("","7","{sad,""ha,ppy"",NULL,""""}","0044-03-15 12:00:00 BC")',
        '("a ""b"" \\\\ (c),d",-1,{},infinity)',
    ),
    "trip": (
        "(,,,)",
        f"({quoted(STOPS, '')},{quoted(PLACES[2], '')},{quoted(TAGS, '')},1.50)",
    ),
    "nothing": ("()",),
    "price_range": ("[1.50,2.00)",),
    "span": ('["(a,1,,)","(b,2,,)")',),
}
"""The same for types that a database makes for itself."""


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[Database]:
    """A database with types of its own."""
    database = databases.create()
    database.query(OWN_TYPES)
    yield database
    databases.drop(database)


class Number(str):
    """A number of JSON, digit by digit."""


def parsed(text: bytes) -> object:
    """JSON, whose numbers lose nothing."""
    return json.loads(text, parse_int=Number, parse_float=Number)


def printed(value: object) -> str:
    """The reverse."""
    if isinstance(value, Number):
        return value
    if isinstance(value, dict):
        return f"{{{','.join(f'{printed(key)}:{printed(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(printed(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def back(value: object, kind: PgType) -> str | None:
    """The SQL literal of a value of JSON, as docs/values.md says. None for a null."""
    if value is None:
        return None
    if kind.category is Category.DOMAIN and kind.element:
        return back(value, kind.element)
    if kind.category is Category.ARRAY and kind.element:
        return array_literal(cast("list[object]", value), kind.element)
    if kind.category is Category.COMPOSITE:
        fields = cast("dict[str, object]", value)
        assert list(fields) == [field.name for field in kind.fields]
        return f"({','.join(quoted(back(fields[field.name], field.type), '') for field in kind.fields)})"
    if kind.name == "hstore":
        pairs = cast("dict[str, str | None]", value).items()
        return ", ".join(f"{quoted(key, 'NULL')}=>{quoted(item, 'NULL')}" for key, item in pairs)
    return printed(value) if kind.name in ("json", "jsonb") else scalar_literal(str(value), kind)


def array_literal(values: list[object], element: PgType) -> str:
    items = [
        array_literal(value, element)
        if isinstance(value, list) and not holds_an_array(element)
        else quoted(back(value, element), "NULL")
        for value in values
    ]
    return f"{{{element.delimiter.join(items)}}}"


def holds_an_array(kind: PgType) -> bool:
    """A domain over arrays."""
    return kind.category is Category.ARRAY or bool(
        kind.category is Category.DOMAIN and kind.element and holds_an_array(kind.element)
    )


def scalar_literal(text: str, kind: PgType) -> str:
    if kind.name == "bytea":
        return f"\\x{b64decode(text, validate=True).hex()}"
    if kind.name in ("date", "timestamp", "timestamptz"):
        if text[0] == "+":
            return text[1:]
        if text[0] == "-" and text != "-infinity":
            year, rest = text[1:].split("-", 1)
            return f"{int(year) + 1:04}-{rest} BC"
        if text.startswith("0000-"):
            return f"0001{text[4:]} BC"
    return text


async def described(database: Database, *names: str) -> list[PgType]:
    """Types by their names in SQL, as the relay learns of them."""
    oids = [cast(int, database.value("SELECT %s::regtype::oid::int8", name)) for name in names]
    async with await connect(database.dsn, name="saga-relay test") as connection:
        types = await load_types(connection, oids)
    return [types[oid] for oid in oids]


def sent(database: Database, name: str, literals: Sequence[str | None]) -> list[bytes | None]:
    """What the relay is sent for a column of this type that holds these values."""
    with psycopg.connect(prepared(database.dsn, "saga-relay test")) as connection:
        connection.execute(sql.SQL(f"CREATE TEMP TABLE holder (place int, value {name})"))
        for place, literal in enumerate(literals):
            values = sql.SQL("INSERT INTO holder VALUES ({}, {})").format(place, sql.Literal(literal))
            connection.execute(values)
        result = connection.execute("SELECT value FROM holder ORDER BY place").pgresult
        assert result is not None
        return [result.get_value(place, 0) for place in range(len(literals))]


async def then_nothing_is_lost(database: Database, name: str, literals: Sequence[str]) -> None:
    """From a table to JSON and from there into a table again, where PostgreSQL writes the same once more.

    That says more than `IS NOT DISTINCT FROM`: for that, 1.5 is 1.50 and 0 is -0, and many types have no equality.
    """
    (kind,) = await described(database, name)
    encode = encoder(kind)
    before = sent(database, name, literals)
    values = [parsed(encode(text)) for text in before if text is not None]
    assert len(values) == len(literals)
    assert sent(database, name, [back(value, kind) for value in values]) == before


async def test_there_are_examples_for_every_built_in_type(shop: Database) -> None:
    rows = shop.query(
        "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace"
        " AND typtype IN ('b', 'e', 'd', 'r', 'm') AND typoutput <> 'array_out'::regproc"
    )
    covered = {kind.name for kind in await described(shop, *EXAMPLES)}
    assert covered | NO_VALUES == {row[0] for row in rows}
    assert not covered & NO_VALUES


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"xml"}))
async def test_a_value_of_a_built_in_type_survives(shop: Database, name: str) -> None:
    await then_nothing_is_lost(shop, name, EXAMPLES[name])


@pytest.mark.parametrize("name", OWN_EXAMPLES)
async def test_a_value_of_a_type_of_its_own_survives(shop: Database, name: str) -> None:
    await then_nothing_is_lost(shop, name, OWN_EXAMPLES[name])


@pytest.mark.parametrize("name", sorted((EXAMPLES | OWN_EXAMPLES).keys() - {"xml"}))
async def test_an_array_survives(shop: Database, name: str) -> None:
    (kind,) = await described(shop, name)
    items = [quoted(literal, "NULL") for literal in (EXAMPLES | OWN_EXAMPLES)[name]]
    flat = kind.delimiter.join([*items, "NULL"])
    nested = [] if holds_an_array(kind) else [f"{{{{{flat}}}{kind.delimiter}{{{flat}}}}}", "{{{NULL}}}"]
    await then_nothing_is_lost(shop, f"{name}[]", ["{}", f"{{{flat}}}", *nested])


async def test_a_composite_value_of_every_type_survives(shop: Database) -> None:
    examples = {name: literals for name, literals in EXAMPLES.items() if name != "xml"}
    fields = ", ".join(f"f{number} {name}" for number, name in enumerate(examples))
    shop.query(f"CREATE TYPE everything AS ({fields})")
    rows = [f"({','.join(quoted(literals[which], '') for literals in examples.values())})" for which in (0, -1)]
    await then_nothing_is_lost(shop, "everything", rows)
    items = ",".join(quoted(row, "NULL") for row in rows)
    await then_nothing_is_lost(shop, "everything[]", [f"{{{items},NULL}}"])


async def test_postgresql_itself_reads_a_row_of_json(shop: Database) -> None:
    """As docs/values.md says."""
    shop.query(
        "CREATE TYPE visit AS (id int8, total numeric, took interval, at timestamptz, day date, span int4range,"
        " tags text[], home place, more place[], how mood, much price, extra jsonb, low float8, addr inet)"
    )
    (kind,) = await described(shop, "visit")
    row = "ROW(9007199254740993, 'NaN', '-1 year 2 days', '2024-02-29 12:00+02', 'infinity', '[1,9)'," + (
        "'{{a,NULL},{\"\",c}}', ROW('x', 1, '{sad}', 'infinity'), ARRAY[ROW(NULL, 1, '{}', NULL)::place, NULL],"
        " 'so \"so\"', 1.5, '[1, {\"a\": 1.50}]', '-0', '10.0.0.1/8')::visit"
    )
    with psycopg.connect(prepared(shop.dsn, "saga-relay test")) as connection:
        result = connection.execute(sql.SQL(f"SELECT {row}")).pgresult
        assert result is not None
        text = result.get_value(0, 0)
        assert text is not None
        read = sql.SQL("SELECT json_populate_record(NULL::visit, {})").format(encoder(kind)(text).decode())
        again = connection.execute(read).pgresult
    assert again is not None
    assert again.get_value(0, 0) == text


async def test_xml_survives(shop: Database) -> None:
    with suppress(psycopg.errors.FeatureNotSupported):  # built without libxml, where no column has a value of it
        await then_nothing_is_lost(shop, "xml", EXAMPLES["xml"])
        await then_nothing_is_lost(
            shop, "xml[]", [f"{{{','.join(quoted(each, '') for each in EXAMPLES['xml'])},NULL}}"]
        )


async def test_an_infinite_interval_survives_where_the_server_has_them(shop: Database) -> None:
    known = shop.connection.info.server_version >= HAS_INFINITE_INTERVALS
    literals = ["infinity", "-infinity"] if known else ["1 day"]
    await then_nothing_is_lost(shop, "interval", literals)


async def test_bounds_of_an_array_are_left_out(shop: Database) -> None:
    (kind,) = await described(shop, "int4[]")
    (text,) = sent(shop, "int4[]", ["[0:1][5:6]={{1,2},{3,NULL}}"])
    assert text is not None
    assert encoder(kind)(text) == b"[[1,2],[3,null]]"


async def test_a_type_is_described_with_all_that_it_is_made_of(shop: Database) -> None:
    (numeric, price, prices, price_range, multirange) = await described(
        shop, "numeric", "price", "prices", "price_range", "price_multirange"
    )
    assert numeric == PgType(1700, "pg_catalog", "numeric")
    assert price == PgType(
        price.oid, "public", "price", Category.DOMAIN, numeric, modifier=(10 << 16 | 2) + 4, delimiter=","
    )
    array = prices.element
    assert array is not None
    assert (prices.category, array.category, array.name, array.element) == (
        Category.DOMAIN,
        Category.ARRAY,
        "_price",
        price,
    )
    assert (price_range.category, price_range.element) == (Category.RANGE, price)
    assert (multirange.category, multirange.element) == (Category.MULTIRANGE, price_range)


async def test_a_composite_type_is_described_as_it_is_now(shop: Database) -> None:
    shop.query("CREATE TYPE point_of_sale AS (id int8, gone text, total numeric(10,2))")
    shop.query("ALTER TYPE point_of_sale DROP ATTRIBUTE gone")
    shop.query("ALTER TYPE point_of_sale ADD ATTRIBUTE mood mood")
    (kind, int8, numeric, mood) = await described(shop, "point_of_sale", "int8", "numeric", "mood")
    assert kind.category is Category.COMPOSITE
    assert kind.fields == (Field("id", int8), Field("total", numeric, (10 << 16 | 2) + 4), Field("mood", mood))
    assert mood.category is Category.ENUM


async def test_the_delimiter_is_that_of_the_elements(shop: Database) -> None:
    (boxes, texts) = await described(shop, "box[]", "text[]")
    assert boxes.element is not None
    assert texts.element is not None
    assert (boxes.element.delimiter, texts.element.delimiter) == (";", ",")


async def test_vectors_of_numbers_are_no_arrays(shop: Database) -> None:
    kinds = await described(shop, "int2vector", "oidvector")
    assert [kind.category for kind in kinds] == [Category.BASE, Category.BASE]


async def test_a_type_that_is_gone_is_unknown(shop: Database) -> None:
    async with await connect(shop.dsn, name="saga-relay test") as connection:
        types = await load_types(connection, [4294967295, 25])
        none = await load_types(connection, [])
    assert types == {4294967295: unknown(4294967295), 25: PgType(25, "pg_catalog", "text")}
    assert none == {}
