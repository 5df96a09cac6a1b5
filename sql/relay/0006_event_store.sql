-- The event store: what happened to an aggregate is what it is. One row an event, and the relay publishes it.

-- Kept for ever, so it has from the start what a table of that size is not given later: the order of insertion over all
-- streams, and the transaction, as the outbox has them.
CREATE TABLE relay.event_store (
    id           uuid        NOT NULL DEFAULT relay.new_message_id(),
    seq          bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    stream_type  text        NOT NULL,
    stream_id    text        NOT NULL,
    version      bigint      NOT NULL CHECK (version > 0),
    type         text        NOT NULL,
    data         json        NOT NULL,
    headers      json        NOT NULL DEFAULT '{}' CHECK (json_typeof(headers) = 'object'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    txid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (stream_type, stream_id, version),
    -- The id of the message: a second event with it would be taken for a copy by every consumer, and never be handled.
    CONSTRAINT event_store_id_key UNIQUE (id)
);

CREATE INDEX event_store_seq ON relay.event_store (seq);

COMMENT ON TABLE relay.event_store IS 'Events, inserted in the transaction that decided on them; the relay publishes them once it commits.';
COMMENT ON COLUMN relay.event_store.id IS 'Message id.';
COMMENT ON COLUMN relay.event_store.seq IS 'Insertion order, over all streams.';
COMMENT ON COLUMN relay.event_store.stream_type IS 'Aggregate type.';
COMMENT ON COLUMN relay.event_store.stream_id IS 'Aggregate id, the ordering key.';
COMMENT ON COLUMN relay.event_store.version IS 'Number of the event in its stream, from 1, without gaps.';
COMMENT ON COLUMN relay.event_store.data IS 'The body, published as it is written here.';
COMMENT ON COLUMN relay.event_store.headers IS 'Extra AMQP headers, a JSON object.';

CREATE FUNCTION relay.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only: % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

COMMENT ON FUNCTION relay.refuse_change() IS 'For triggers of tables that are only appended to: refuses whatever it is called for.';

CREATE TRIGGER event_store_append_only BEFORE UPDATE OR DELETE ON relay.event_store
    FOR EACH ROW EXECUTE FUNCTION relay.refuse_change();
CREATE TRIGGER event_store_no_truncate BEFORE TRUNCATE ON relay.event_store
    FOR EACH STATEMENT EXECUTE FUNCTION relay.refuse_change();

CREATE OR REPLACE FUNCTION relay.grant_service(service_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT ON relay.outbox, relay.inbox, relay.saga_log, relay.event_store TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON relay.saga TO %I', service_role);
END
$$;
