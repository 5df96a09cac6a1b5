-- What must happen at most once, and what could not be handled yet.

-- An operation is done by one action, however often that is asked for, and undone by one compensation. Both insert this row
-- before they begin: whoever comes second waits for the end of the first one's transaction, and then sees what became of it.
CREATE TABLE relay.operation (
    consumer    text        NOT NULL,
    operation   text        NOT NULL,
    outcome     text        NOT NULL CHECK (outcome IN ('done', 'failed', 'cancelled', 'compensated')),
    attempt     integer     NOT NULL DEFAULT 1,
    reply_type  text,
    reply       json,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, operation)
);
CREATE INDEX operation_at ON relay.operation (at);

COMMENT ON TABLE relay.operation IS 'What a service has done, or undone, at most once: by saga id / step / branch.';
COMMENT ON COLUMN relay.operation.outcome IS
    'done: the action ran; failed: it was refused, and changed nothing; cancelled: it was to be undone before it ran, and never will; compensated: it ran, and is undone.';
COMMENT ON COLUMN relay.operation.attempt IS 'The attempt that brought about a failure: a later one may try again.';
COMMENT ON COLUMN relay.operation.reply IS 'What a repeated command is answered with: the reply to the action, or to its compensation.';

-- Messages that could not be handled yet, and those of the same aggregate that came after them. They are acknowledged: they
-- are here instead of in the queue. Any instance of the consumer tries the first of an aggregate again when it is due. One
-- whose tries are used up is dead, and waits for `relay dead`.
CREATE TABLE relay.deferred (
    consumer        text        NOT NULL,
    message_id      text        NOT NULL,
    seq             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    aggregate_type  text        NOT NULL,
    aggregate_id    text        NOT NULL,
    type            text        NOT NULL,
    properties      json        NOT NULL,
    body            bytea       NOT NULL,
    attempts        integer     NOT NULL DEFAULT 0,
    history         json        NOT NULL DEFAULT '[]',
    deferred_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    dead_at         timestamptz,
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX deferred_order ON relay.deferred (consumer, aggregate_type, aggregate_id, seq);
CREATE INDEX deferred_due ON relay.deferred (consumer, due_at) WHERE dead_at IS NULL;

COMMENT ON COLUMN relay.deferred.properties IS 'The AMQP properties and headers, as they came.';
COMMENT ON COLUMN relay.deferred.attempts IS 'How often it has been tried, also before it came here. 0: it waits behind another one.';
COMMENT ON COLUMN relay.deferred.history IS 'The failures: [{"at", "attempt", "error"}], the oldest first.';
COMMENT ON COLUMN relay.deferred.dead_at IS 'When its tries were used up. Those behind it wait until it is replayed or dropped.';

-- Old ids are deleted in the order of their time.
CREATE INDEX inbox_handled_at ON relay.inbox (handled_at);
