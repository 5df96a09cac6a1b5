-- What a service's own role may do here: write messages, remember what it handled, run sagas. Nothing else.

CREATE FUNCTION relay.grant_service(service_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT ON relay.outbox, relay.inbox, relay.saga_log TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON relay.saga TO %I', service_role);
END
$$;

COMMENT ON FUNCTION relay.grant_service(name) IS 'Gives a service''s role what the messaging library needs. Safe to repeat.';
REVOKE EXECUTE ON FUNCTION relay.grant_service(name) FROM PUBLIC;
