-- A timer that cannot be fired is tried again within a budget, and then its saga is suspended. What is nobody's fault, a
-- conflict with another transaction or a lost connection, is counted apart from what code of the saga raises.

ALTER TABLE relay.saga_timer ADD COLUMN interruptions integer NOT NULL DEFAULT 0;

-- So far both were counted as failures, and there was no end to it: everybody begins anew.
UPDATE relay.saga_timer SET failures = 0 WHERE fired_at IS NULL AND failures > 0;

COMMENT ON COLUMN relay.saga_timer.due_at IS 'When it is to be fired. infinity: its saga is suspended because of it, until something happens in the saga, or somebody sets a time.';
COMMENT ON COLUMN relay.saga_timer.failures IS 'How often firing it has failed, because code of the saga raised. It is put off each time.';
COMMENT ON COLUMN relay.saga_timer.interruptions IS 'How often firing it was interrupted, by a conflict with another transaction or a lost connection. It is put off each time.';
