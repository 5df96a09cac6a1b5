"""What is written to be read again: rows of the outbox, or changes of a plain table. Pure: only the SQL."""

import random
import string
from typing import Final, LiteralString

from psycopg import sql

from bench.matrix import Capture, Shape
from bench.times import STAMP_DIGITS

AGGREGATES: Final = 1000
TYPES: Final = ("OrderCreated", "OrderPaid", "OrderShipped", "OrderClosed")

TABLE: Final = "public.customers"
CUSTOMERS: Final = 1000
"""Rows that the table has before the slot: those that are updated."""

NOISE_CHARACTERS: Final = 8192
"""Texts are cut out of so much random text: PostgreSQL would squeeze anything regular."""
SHIFTS: Final = NOISE_CHARACTERS - 4096
"""At so many places. The longest payload fits behind the last."""

# Procedures: they commit in between.

# The text that frames number and noise is of JSON.
_OUTBOX: Final[LiteralString] = """
    DO $$ DECLARE noise CONSTANT text := {noise}; types CONSTANT text[] := {types}; BEGIN
        FOR start IN 0..{last} BY {step} LOOP
            INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)
            SELECT 'order', (n % {aggregates})::text, types[1 + n % {type_count}],
                   ('{{"n": "' || lpad(n::text, {digits}, '0') || '", "text": "'
                       || substr(noise, 1 + n * 7 % {shifts}, {length}) || '"}}')::json
            FROM generate_series(start + 1, start + {step}) AS n;
            COMMIT;
        END LOOP;
    END $$
"""

# As a service would have it: a key, names, an amount, times, free text.
_CUSTOMERS: Final[LiteralString] = """
    CREATE TABLE public.customers (
        id bigint PRIMARY KEY,
        name text NOT NULL,
        email text NOT NULL,
        credit_limit numeric(12, 2) NOT NULL,
        active boolean NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz,
        notes text
    );
    INSERT INTO public.customers (id, name, email, credit_limit, active, created_at)
    SELECT id, 'Customer ' || lpad(id::text, {digits}, '0'), lpad(id::text, {digits}, '0') || '@mail.example.org',
           100.00, true, '2026-01-01 00:00:00.000001Z'
    FROM generate_series(1, {customers}) AS id
"""

# Every odd number is a new row, and every even one a change of an old row: no row twice in a transaction. Without
# statistics, which nobody gathers here, PostgreSQL would go through the whole table for each UPDATE.
_TABLE: Final[LiteralString] = """
    DO $$
    DECLARE
        noise CONSTANT text := {noise};
        begun CONSTANT timestamptz := '2026-01-02 00:00:00.000001Z';
    BEGIN
        SET enable_seqscan = off;
        FOR start IN 0..{last} BY {step} LOOP
            INSERT INTO public.customers
            SELECT {customers} + (n + 1) / 2, 'Customer ' || lpad(n::text, {digits}, '0'),
                   lpad(n::text, {digits}, '0') || '@mail.example.org', n % 100000 + 0.99, n % 3 <> 0,
                   begun + n * interval '1.000001 s', NULL,
                   substr(noise, 1 + n * 7 % {shifts}, {length} + {moment})
            FROM generate_series(start + 1, start + {step}) AS n WHERE n % 2 = 1;
            UPDATE public.customers
            SET credit_limit = start % 100000 + id + 0.01, updated_at = begun + start * interval '1.000001 s',
                notes = substr(noise, (1 + (start + id) * 7 % {shifts})::integer, {length})
            WHERE id = ANY (ARRAY(
                SELECT 1 + n / 2 % {customers} FROM generate_series(start + 1, start + {step}) AS n WHERE n % 2 = 0
            ));
            COMMIT;
        END LOOP;
    END $$
"""

FRAME_CHARACTERS: Final = len('{"n": "", "text": ""}') + STAMP_DIGITS

MOMENT_CHARACTERS: Final = len("2026-01-02 00:00:00.000001+00")
REST_CHARACTERS: Final = 54 + 2 * MOMENT_CHARACTERS
"""What a row of the table has beside its notes, as text: about so much."""


def prepared(capture: Capture) -> sql.Composed | None:
    """What has to be there before the relay starts for the first time, beside its own schema."""
    return None if capture is Capture.OUTBOX else sql.SQL(_CUSTOMERS).format(customers=CUSTOMERS, digits=STAMP_DIGITS)


def written(shape: Shape) -> sql.Composed:
    """A statement that writes a backlog: as many messages as the shape has rows. Needs autocommit.

    Raises ValueError where a transaction would change a row of the table twice, and PostgreSQL would make one change of
    it.
    """
    dice = random.Random(shape.rows)
    noise = "".join(dice.choices(string.ascii_letters + string.digits, k=NOISE_CHARACTERS))
    if shape.capture is Capture.OUTBOX:
        return sql.SQL(_OUTBOX).format(
            last=shape.rows - 1,
            step=shape.per_transaction,
            aggregates=AGGREGATES,
            types=list(TYPES),
            type_count=len(TYPES),
            digits=STAMP_DIGITS,
            noise=noise,
            shifts=SHIFTS,
            length=shape.payload_bytes - FRAME_CHARACTERS,
        )
    if shape.per_transaction > 2 * CUSTOMERS:
        raise ValueError(f"{shape.per_transaction:,} changes a transaction need more than {CUSTOMERS:,} rows to change")
    return sql.SQL(_TABLE).format(
        last=shape.rows - 1,
        step=shape.per_transaction,
        customers=CUSTOMERS,
        digits=STAMP_DIGITS,
        noise=noise,
        shifts=SHIFTS,
        length=shape.payload_bytes - REST_CHARACTERS,
        moment=MOMENT_CHARACTERS,
    )
