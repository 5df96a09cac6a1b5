-- The saga engine: where each step stands, timers, and locks on what a saga works on.

ALTER TABLE relay.saga
    ADD COLUMN definition  text,
    ADD COLUMN progress    json    NOT NULL DEFAULT '{}',
    ADD COLUMN reason      text,
    ADD COLUMN events      integer NOT NULL DEFAULT 0,
    ADD COLUMN ended_at    timestamptz,
    DROP CONSTRAINT saga_status_check,
    ADD CONSTRAINT saga_status_check
        CHECK (status IN ('WAITING', 'RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED', 'SUSPENDED'));

-- Sagas from before the engine go on: where their steps stand is what the log said of each last.
UPDATE relay.saga AS s
SET events = coalesce((SELECT max(l.ordinal) FROM relay.saga_log AS l WHERE l.saga_id = s.id), 0),
    ended_at = CASE WHEN s.status IN ('COMPLETED', 'COMPENSATED') THEN s.updated_at END,
    progress = json_build_object('steps', coalesce((
        SELECT json_object_agg(last.step, json_strip_nulls(json_build_object(
            'phase', last.phase, 'attempt', 1,
            'undo_attempt', CASE WHEN last.phase IN ('UNDOING', 'UNDONE') THEN 1 END,
            'done', CASE WHEN last.phase IN ('UNDOING', 'UNDONE') THEN true END)) ORDER BY last.ordinal)
        FROM (
            SELECT DISTINCT ON (l.step) l.step, l.ordinal, CASE l.event
                WHEN 'StepStarted' THEN 'STARTED' WHEN 'StepSucceeded' THEN 'DONE' WHEN 'StepFailed' THEN 'FAILED'
                WHEN 'StepCompensating' THEN 'UNDOING' ELSE 'UNDONE' END AS phase
            FROM relay.saga_log AS l
            WHERE l.saga_id = s.id AND l.step IS NOT NULL
            ORDER BY l.step, l.ordinal DESC
        ) AS last), '{}'));

COMMENT ON COLUMN relay.saga.definition IS 'Hash of the definition that the saga started under.';
COMMENT ON COLUMN relay.saga.step IS 'The steps that are under way, null when there are none.';
COMMENT ON COLUMN relay.saga.progress IS 'Where each step stands: {"steps": {"reserve_credit": {"phase": "DONE", "attempt": 1}}}.';
COMMENT ON COLUMN relay.saga.reason IS 'Why it is compensated, or suspended.';
COMMENT ON COLUMN relay.saga.events IS 'The ordinal of its last event in relay.saga_log.';

CREATE INDEX saga_started ON relay.saga (started_at);

ALTER TABLE relay.saga_log
    ADD COLUMN attempt  integer,
    ADD COLUMN reason   text,
    DROP CONSTRAINT saga_log_event_check,
    ADD CONSTRAINT saga_log_event_check CHECK (event IN (
        'SagaWaiting', 'SagaStarted', 'StepStarted', 'StepSkipped', 'StepSucceeded', 'StepFailed', 'StepTimedOut',
        'StepCompensating', 'StepCompensated', 'CompensationFailed', 'SagaTimedOut', 'SagaAborted', 'SagaCompleted',
        'SagaCompensated', 'SagaSuspended', 'OperatorAction'));

COMMENT ON COLUMN relay.saga_log.attempt IS 'Which attempt of the step, or of its compensation, counted from 1.';
COMMENT ON COLUMN relay.saga_log.reason IS 'Why, where something went wrong.';

-- What is to happen in a saga at a certain time, unless it has gone on by then: it names saga, step and attempt, and does
-- nothing when it is stale. Any instance fires it. Fired ones are kept for a while.
CREATE TABLE relay.saga_timer (
    id        bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    service   text        NOT NULL,
    saga_id   uuid        NOT NULL,
    purpose   text        NOT NULL CHECK (purpose IN ('timeout', 'retry', 'undo_timeout', 'undo_retry', 'saga_timeout', 'lock', 'lock_timeout')),
    step      text,
    attempt   integer,
    due_at    timestamptz NOT NULL,
    failures  integer     NOT NULL DEFAULT 0,
    fired_at  timestamptz
);
CREATE INDEX saga_timer_due ON relay.saga_timer (service, due_at) WHERE fired_at IS NULL;
CREATE INDEX saga_timer_fired ON relay.saga_timer (fired_at) WHERE fired_at IS NOT NULL;

COMMENT ON COLUMN relay.saga_timer.service IS 'Whose saga it is: several services may share a database.';
COMMENT ON COLUMN relay.saga_timer.failures IS 'How often firing it has failed, because code of the saga raised. It is put off each time.';

-- Who works on what. One saga holds a resource, those that wait for it are let in as they came.
CREATE TABLE relay.saga_lock (
    resource  text        NOT NULL,
    saga_id   uuid        NOT NULL,
    service   text        NOT NULL,
    position  bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    taken_at  timestamptz,
    PRIMARY KEY (resource, saga_id)
);
CREATE UNIQUE INDEX saga_lock_holder ON relay.saga_lock (resource) WHERE taken_at IS NOT NULL;
CREATE INDEX saga_lock_queue ON relay.saga_lock (resource, position) WHERE taken_at IS NULL;
CREATE INDEX saga_lock_saga ON relay.saga_lock (saga_id);

COMMENT ON COLUMN relay.saga_lock.resource IS 'What is worked on: type/id, like order/7.';
COMMENT ON COLUMN relay.saga_lock.taken_at IS 'Since when the saga holds it. Null: it waits.';

CREATE OR REPLACE FUNCTION relay.grant_service(service_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT ON relay.outbox, relay.saga_log, relay.event_store TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON relay.inbox TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON relay.saga TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON relay.operation, relay.deferred, relay.saga_timer, relay.saga_lock TO %I',
                   service_role);
    -- It may capture its own tables. It may write any message anyway.
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION relay.capture_table(regclass, text, text[], text[]), relay.release_table(regclass),'
        ' relay.require_capturable(regclass, text[], text[]), relay.primary_key(regclass),'
        ' relay.foreign_json_cast(regclass), relay.capture_row(), relay.capture_truncate() TO %I', service_role);
END
$$;

-- Services that have their rights already get the new ones at once: their processes may be newer than this.
SELECT relay.grant_service(service.rolname)
FROM pg_class AS saga, aclexplode(saga.relacl) AS granted JOIN pg_roles AS service ON service.oid = granted.grantee
WHERE saga.oid = 'relay.saga'::regclass AND granted.privilege_type = 'UPDATE' AND granted.grantee <> saga.relowner;
