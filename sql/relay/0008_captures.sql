-- Several captures: what is captured of each slot's database, and by which capture a parked message came.

-- A table is here from when it enters the publication until it is no longer captured. One that is here and not in the
-- publication was taken out of it by somebody else: rows of it may have been missed.
CREATE TABLE relay.captured (
    slot          text    NOT NULL,
    table_schema  text    NOT NULL,
    table_name    text    NOT NULL,
    table_oid     oid     NOT NULL,
    state         text    NOT NULL CHECK (state IN ('copying', 'streaming')),
    since         pg_lsn,
    copy_id       uuid    NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (slot, table_schema, table_name)
);

COMMENT ON TABLE relay.captured IS 'The tables whose changes the relay of a slot publishes.';
COMMENT ON COLUMN relay.captured.state IS
    'copying: the rows that were there before are still being published, and a crash begins that again; streaming: they are.';
COMMENT ON COLUMN relay.captured.since IS
    'What committed before this was in the copy already; null when the table was there from the slot''s beginning, or was not copied.';
COMMENT ON COLUMN relay.captured.copy_id IS
    'What tells the copy of its rows from earlier and later ones; one that a crash interrupts stays the same.';

COMMENT ON COLUMN relay.captured.table_oid IS 'A table with another name and this oid is the same one; with this name and another oid, a new one.';

INSERT INTO relay.captured (slot, table_schema, table_name, table_oid, state)
SELECT slot, 'relay', 'outbox', 'relay.outbox'::regclass, 'streaming' FROM relay.checkpoint WHERE state = 'streaming';

ALTER TABLE relay.checkpoint ADD COLUMN tables_since pg_lsn;

COMMENT ON COLUMN relay.checkpoint.tables_since IS
    'The publication of plain tables was there at this position. PostgreSQL up to 17 cannot stream what lies before it from a publication.';

ALTER TABLE relay.parked ADD COLUMN capture text NOT NULL DEFAULT 'outbox', ADD COLUMN binary_payload bytea;

COMMENT ON COLUMN relay.parked.capture IS 'The name of the capture that it came by: its envelope and its route are set there. Empty for what is no message, and cannot be replayed.';
COMMENT ON COLUMN relay.parked.binary_payload IS 'The payload where it is no text in UTF-8; `payload` is empty then.';
