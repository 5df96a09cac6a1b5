-- Parking: messages that could not be published, what became of those that were set aside, and what operators ask for.

-- One row a message, until somebody replays or drops it. Messages of one lane (aggregate, kind, destination) are replayed in
-- the order of (commit_lsn, ordinal). The indexes are hashes: a B-tree takes no key as long as a message may have.
CREATE TABLE relay.parked (
    slot            text        NOT NULL,
    commit_lsn      pg_lsn      NOT NULL,
    ordinal         bigint      NOT NULL,
    id              text        NOT NULL,
    kind            text        NOT NULL CHECK (kind IN ('event', 'command', 'reply')),
    aggregate_type  text        NOT NULL,
    aggregate_id    text        NOT NULL,
    type            text        NOT NULL,
    destination     text,
    correlation_id  text,
    reply_to        text,
    causation_id    text,
    operation       text,
    headers         text        NOT NULL,
    payload         text        NOT NULL,
    created_at      timestamptz,
    reason          text        NOT NULL CHECK (reason IN ('unroutable', 'nacked', 'too_large', 'unencodable')),
    detail          text        NOT NULL,
    parked_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (slot, commit_lsn, ordinal)
);

CREATE INDEX parked_id ON relay.parked USING hash (id);
CREATE INDEX parked_aggregate ON relay.parked USING hash (aggregate_id);

COMMENT ON TABLE relay.parked IS
    'Messages that could not be published, and those that wait behind them. `relay parked` replays and drops them; rows that are deleted by hand are gone.';
COMMENT ON COLUMN relay.parked.commit_lsn IS 'The commit of its transaction in the write-ahead log; 0/0 for rows older than the slot.';
COMMENT ON COLUMN relay.parked.ordinal IS 'Its number among the messages of its transaction; the outbox''s seq for rows older than the slot.';
COMMENT ON COLUMN relay.parked.headers IS 'Byte for byte as in the outbox.';
COMMENT ON COLUMN relay.parked.payload IS 'Byte for byte as in the outbox.';
COMMENT ON COLUMN relay.parked.reason IS 'Why the first of its lane is parked; those behind it carry the same.';
COMMENT ON COLUMN relay.parked.detail IS 'What happened to it, for a person.';

-- What the slot may send again after a crash although it is settled. Forgotten once the slot is past it.
CREATE TABLE relay.unparked (
    slot        text        NOT NULL,
    commit_lsn  pg_lsn      NOT NULL,
    ordinal     bigint      NOT NULL,
    id          text        NOT NULL,
    outcome     text        NOT NULL CHECK (outcome IN ('replayed', 'dropped')),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (slot, commit_lsn, ordinal)
);

COMMENT ON TABLE relay.unparked IS 'Parked messages that were replayed or dropped, for as long as the slot may send them again.';

-- What an operator asks of the relay that works on the slot, and how far it has come.
CREATE TABLE relay.parked_request (
    id              bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    slot            text        NOT NULL,
    action          text        NOT NULL CHECK (action IN ('replay', 'drop')),
    ids             text[],
    aggregate_type  text,
    aggregate_id    text,
    reason          text,
    first_only      boolean     NOT NULL DEFAULT false,
    state           text        NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'taken', 'done')),
    lanes           jsonb,
    published       bigint      NOT NULL DEFAULT 0,
    dropped         bigint      NOT NULL DEFAULT 0,
    still_parked    bigint      NOT NULL DEFAULT 0,
    detail          text,
    asked_by        text        NOT NULL DEFAULT session_user,
    asked_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz NOT NULL,
    progress_at     timestamptz,
    CONSTRAINT parked_request_selection_check CHECK (num_nonnulls(ids, aggregate_id, reason) > 0),
    CONSTRAINT parked_request_first_check CHECK (NOT first_only OR (action = 'drop' AND ids IS NOT NULL))
);

CREATE INDEX parked_request_open ON relay.parked_request (slot, id) WHERE state <> 'done';

COMMENT ON TABLE relay.parked_request IS 'What operators ask: replay or drop. The relay that works on the slot takes it, and says here what came of it.';
COMMENT ON COLUMN relay.parked_request.first_only IS 'Drop these messages alone, each the first of its lane, and not what waits behind them.';
COMMENT ON COLUMN relay.parked_request.lanes IS 'The lanes that were selected when the request was taken: type, id, kind, destination. A relay that resumes it finds them here.';
COMMENT ON COLUMN relay.parked_request.expires_at IS 'Nobody takes it after this time: who asked is gone.';
COMMENT ON COLUMN relay.parked_request.still_parked IS 'How many messages of the selected lanes were still parked at the end.';
