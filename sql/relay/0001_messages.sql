-- Messages: what services write, what they have handled, and how far the relay has come.

-- Message ids sort by time where the server can make such ids (uuidv7 came with PostgreSQL 18).
DO $$
BEGIN
    IF to_regprocedure('pg_catalog.uuidv7()') IS NULL THEN
        CREATE FUNCTION relay.new_message_id() RETURNS uuid LANGUAGE sql VOLATILE AS 'SELECT pg_catalog.gen_random_uuid()';
    ELSE
        CREATE FUNCTION relay.new_message_id() RETURNS uuid LANGUAGE sql VOLATILE AS 'SELECT pg_catalog.uuidv7()';
    END IF;
END
$$;

-- The outbox is an interface for every language: a plain INSERT of aggregate_type, aggregate_id, type and payload is a
-- complete event. Partitioned by time so that old rows can be dropped rather than deleted.
CREATE TABLE relay.outbox (
    id              uuid        NOT NULL DEFAULT relay.new_message_id(),
    seq             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind            text        NOT NULL DEFAULT 'event' CHECK (kind IN ('event', 'command', 'reply')),
    aggregate_type  text        NOT NULL,
    aggregate_id    text        NOT NULL,
    type            text        NOT NULL,
    destination     text,
    correlation_id  text,
    reply_to        text,
    causation_id    text,
    operation       text,
    headers         json        NOT NULL DEFAULT '{}' CHECK (json_typeof(headers) = 'object'),
    payload         json        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    txid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (id, created_at),
    CONSTRAINT outbox_destination_check CHECK (kind = 'event' OR destination IS NOT NULL)
) PARTITION BY RANGE (created_at);

CREATE TABLE relay.outbox_default PARTITION OF relay.outbox DEFAULT;
CREATE INDEX outbox_seq ON relay.outbox (seq);

COMMENT ON TABLE relay.outbox IS 'Messages, inserted in the transaction that they belong to; the relay publishes them once it commits.';
COMMENT ON COLUMN relay.outbox.seq IS 'Insertion order.';
COMMENT ON COLUMN relay.outbox.aggregate_id IS 'The ordering key: messages of one aggregate leave in commit order.';
COMMENT ON COLUMN relay.outbox.destination IS 'Commands and replies: the service addressed.';
COMMENT ON COLUMN relay.outbox.causation_id IS 'Id of the message that caused this one.';
COMMENT ON COLUMN relay.outbox.operation IS 'What must happen at most once: saga id / step / branch.';
COMMENT ON COLUMN relay.outbox.headers IS 'Extra AMQP headers, a JSON object.';
COMMENT ON COLUMN relay.outbox.payload IS 'The body, published as it is written here.';

-- Ids of messages that a consumer has handled, inserted in the transaction that handled them.
CREATE TABLE relay.inbox (
    consumer    text        NOT NULL,
    message_id  text        NOT NULL,
    sent_at     timestamptz,
    handled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id)
);

COMMENT ON COLUMN relay.inbox.sent_at IS 'The sender''s time, where the message tells it.';

-- What the relay knows about each of its slots. A slot that is recorded here and gone from the server was lost.
CREATE TABLE relay.checkpoint (
    slot                          text        PRIMARY KEY,
    state                         text        NOT NULL CHECK (state IN ('copying', 'streaming')),
    flush_lsn                     pg_lsn,
    oldest_unconfirmed_commit_at  timestamptz,
    written_at                    timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN relay.checkpoint.state IS
    'copying: rows older than the slot are still being published, and a crash begins that again; streaming: the slot is in use.';
COMMENT ON COLUMN relay.checkpoint.flush_lsn IS 'What PostgreSQL had been told it may forget, when this was written.';
