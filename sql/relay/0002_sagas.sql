-- Sagas: the state of each, and the permanent record of everything that happened in it.

CREATE TABLE relay.saga (
    id          uuid        PRIMARY KEY DEFAULT relay.new_message_id(),
    type        text        NOT NULL,
    status      text        NOT NULL CHECK (status IN ('RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED', 'SUSPENDED')),
    step        text,
    state       json        NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX saga_unfinished ON relay.saga (type, started_at) WHERE status NOT IN ('COMPLETED', 'COMPENSATED');

COMMENT ON COLUMN relay.saga.step IS 'The step that is under way, null when the saga has ended.';
COMMENT ON COLUMN relay.saga.state IS 'The saga''s own data, as its definition declares it.';

-- One row an event, in the order of `ordinal` within a saga. Partitioned by time, and kept.
CREATE TABLE relay.saga_log (
    saga_id     uuid        NOT NULL,
    ordinal     integer     NOT NULL CHECK (ordinal > 0),
    event       text        NOT NULL CHECK (event IN (
        'SagaStarted', 'StepStarted', 'StepSucceeded', 'StepFailed', 'StepTimedOut', 'StepCompensating', 'StepCompensated',
        'CompensationFailed', 'SagaCompleted', 'SagaCompensated', 'SagaSuspended', 'OperatorAction')),
    step        text,
    message_id  text,
    detail      json        NOT NULL DEFAULT '{}',
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (saga_id, ordinal, at)
) PARTITION BY RANGE (at);

CREATE TABLE relay.saga_log_default PARTITION OF relay.saga_log DEFAULT;

COMMENT ON COLUMN relay.saga_log.message_id IS 'The message that brought the event about.';
COMMENT ON COLUMN relay.saga_log.detail IS 'What the event carried: the state it left behind, the reply, the reason.';

CREATE FUNCTION relay.refuse_saga_log_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'relay.saga_log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER saga_log_append_only BEFORE UPDATE OR DELETE ON relay.saga_log
    FOR EACH ROW EXECUTE FUNCTION relay.refuse_saga_log_change();
CREATE TRIGGER saga_log_no_truncate BEFORE TRUNCATE ON relay.saga_log
    FOR EACH STATEMENT EXECUTE FUNCTION relay.refuse_saga_log_change();
CREATE TRIGGER saga_log_default_no_truncate BEFORE TRUNCATE ON relay.saga_log_default
    FOR EACH STATEMENT EXECUTE FUNCTION relay.refuse_saga_log_change();
