-- The saga log over time: partitions of a month each, made ahead as those of the outbox are, and never dropped.
--
-- What 0005_outbox_partitions.sql does for the outbox alone is done here for every table that relay.partitioned names; its
-- functions keep their names, their rights and their promises, and call these. Locks are waited for as long as it says there.
-- Bounds are those of days and months of UTC.

CREATE FUNCTION relay.partitioned() RETURNS TABLE (parent name, key name, unit text, suffix text, guard text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES (name 'outbox', name 'created_at', 'day', 'YYYYMMDD', NULL),
           (name 'saga_log', name 'at', 'month', 'YYYYMM', 'relay.refuse_saga_log_change()')
$$;

COMMENT ON FUNCTION relay.partitioned() IS
    'The tables of the schema relay that are partitioned by time: by which column, what each partition holds, how its name ends, and which trigger guards it from TRUNCATE.';

-- The default partition's constraint, as for the outbox: see relay.outbox_default_holds.
CREATE FUNCTION relay.saga_log_default_holds(at timestamptz) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS 'SELECT true';
GRANT EXECUTE ON FUNCTION relay.saga_log_default_holds(timestamptz) TO PUBLIC;

COMMENT ON FUNCTION relay.saga_log_default_holds(timestamptz) IS
    'Whether an event of that time may be in relay.saga_log_default: always, outside of relay.create_partition.';

ALTER TABLE relay.saga_log_default
    ADD CONSTRAINT saga_log_default_holds CHECK (relay.saga_log_default_holds(at));
CREATE INDEX saga_log_default_at ON relay.saga_log_default (at);

CREATE FUNCTION relay.partitions(parent name) RETURNS TABLE (first date, partition regclass)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
    SELECT own.first, own.oid::regclass
    FROM relay.partitioned() AS p, LATERAL (
        SELECT c.oid, c.relname, bounds,
               substring(bounds FROM '^FOR VALUES FROM \(''(\d{4}-\d\d-\d\d) 00:00:00\+00''\)')::date AS first
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) AS bounds
        WHERE i.inhparent = format('relay.%I', p.parent)::regclass
    ) AS own
    WHERE p.parent = partitions.parent
      AND own.relname = p.parent || '_p' || to_char(own.first, p.suffix)
      AND own.bounds = format('FOR VALUES FROM (%L) TO (%L)', own.first::timestamptz,
                              own.first::timestamptz + ('1 ' || p.unit)::interval)
    ORDER BY own.first
$$;

COMMENT ON FUNCTION relay.partitions(name) IS
    'The partitions that the relay made, by name and bounds. Others that somebody has attached are left alone.';

CREATE FUNCTION relay.default_partition_has(parent name, first timestamptz, beyond timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    plan record;
    found boolean;
BEGIN
    SELECT p.* INTO STRICT plan FROM relay.partitioned() AS p WHERE p.parent = default_partition_has.parent;
    EXECUTE format('SELECT EXISTS (SELECT FROM relay.%I WHERE %I >= $1 AND %I < $2)',
                   plan.parent || '_default', plan.key, plan.key) INTO found USING first, beyond;
    RETURN found;
END
$$;

COMMENT ON FUNCTION relay.default_partition_has(name, timestamptz, timestamptz) IS
    'Whether the default partition has rows of that time, `beyond` excluded.';

-- An hour ahead, or not at all: why, 0005_outbox_partitions.sql says at relay.outbox_days_missing.
CREATE FUNCTION relay.partition_missing(parent name, first date) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT date_trunc(p.unit, first::timestamptz) = first::timestamptz
       AND first::timestamptz >= now() + interval '1 hour'
       AND NOT EXISTS (SELECT FROM relay.partitions(p.parent) AS own WHERE own.first = partition_missing.first)
       AND NOT relay.default_partition_has(
           p.parent, first::timestamptz, first::timestamptz + ('1 ' || p.unit)::interval)
    FROM relay.partitioned() AS p WHERE p.parent = partition_missing.parent
$$;

COMMENT ON FUNCTION relay.partition_missing(name, date) IS
    'Whether a partition that begins at that date can and should be made. Null for a table that is not in relay.partitioned.';

CREATE FUNCTION relay.partitions_missing(parent name, ahead integer) RETURNS TABLE (first date)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT coming.first
    FROM relay.partitioned() AS p, generate_series(1, ahead) AS n,
         LATERAL (SELECT (date_trunc(p.unit, now()) + n * ('1 ' || p.unit)::interval)::date AS first) AS coming
    WHERE p.parent = partitions_missing.parent AND relay.partition_missing(p.parent, coming.first)
    ORDER BY coming.first
$$;

COMMENT ON FUNCTION relay.partitions_missing(name, integer) IS
    'The next days or months that have no partition and no rows in the default partition. Takes no lock that anybody waits for.';

-- Two relays that work on slots of one database share its tables.
CREATE FUNCTION relay.lock_partitions(parent name) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('relay.' || parent, 0)) THEN
        RAISE EXCEPTION 'somebody else works on the partitions of relay.%', parent USING ERRCODE = 'lock_not_available';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the partitions of relay.% are looked after in READ COMMITTED: what is looked at under a '
            'lock has to be what is there', parent USING ERRCODE = 'invalid_transaction_state';
    END IF;
END
$$;

CREATE FUNCTION relay.create_partition(parent name, first date) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '50ms' AS $$
DECLARE
    plan record;
    partition name;
    beyond timestamptz;
    holds CONSTANT text := 'CREATE OR REPLACE FUNCTION relay.%I(%I timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS %L';
BEGIN
    PERFORM relay.lock_partitions(parent);
    IF relay.partition_missing(parent, first) IS NOT TRUE THEN
        RETURN false;
    END IF;
    SELECT p.*, p.parent || '_default' AS fallback, p.parent || '_default_holds' AS holds
    INTO STRICT plan FROM relay.partitioned() AS p WHERE p.parent = create_partition.parent;
    partition := plan.parent || '_p' || to_char(first, plan.suffix);
    beyond := first::timestamptz + ('1 ' || plan.unit)::interval;

    -- Made aside, and then attached: a partition that is created in place locks out the writers of every partition.
    EXECUTE format('CREATE TABLE relay.%I (LIKE relay.%I INCLUDING ALL EXCLUDING IDENTITY)', partition, plan.parent);
    PERFORM relay.withhold_rights(plan.parent, partition);
    IF plan.guard IS NOT NULL THEN
        -- PostgreSQL gives a partition the parent's triggers for each row, and not those for a statement.
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON relay.%I FOR EACH STATEMENT EXECUTE FUNCTION %s',
                       partition || '_no_truncate', partition, plan.guard);
    END IF;
    EXECUTE format('LOCK TABLE relay.%I IN ACCESS EXCLUSIVE MODE', plan.fallback);
    IF relay.default_partition_has(plan.parent, first::timestamptz, beyond) THEN
        EXECUTE format('DROP TABLE relay.%I', partition);
        RETURN false;
    END IF;
    EXECUTE format(holds, plan.holds, plan.key,
                   format('SELECT %I < %L OR %I >= %L', plan.key, first::timestamptz, plan.key, beyond));
    EXECUTE format('ALTER TABLE relay.%I ATTACH PARTITION relay.%I FOR VALUES FROM (%L) TO (%L)',
                   plan.parent, partition, first::timestamptz, beyond);
    EXECUTE format(holds, plan.holds, plan.key, 'SELECT true');
    RETURN true;
END
$$;

COMMENT ON FUNCTION relay.create_partition(name, date) IS
    'Makes a partition to come. False if it is there, its time is near or no such time, or the default partition has rows of it.';

-- Default privileges may give rights on every new table. On a partition that would be a way around its parent.
CREATE FUNCTION relay.withhold_rights(parent name, partition name) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    surplus record;
BEGIN
    FOR surplus IN
        SELECT own.grantee, own.privilege_type
        FROM pg_class AS c, aclexplode(c.relacl) AS own
        WHERE c.oid = format('relay.%I', partition)::regclass AND own.grantee <> c.relowner
          AND NOT EXISTS (
              SELECT FROM pg_class AS p, aclexplode(p.relacl) AS given
              WHERE p.oid = format('relay.%I', parent)::regclass
                AND (given.grantee, given.privilege_type) = (own.grantee, own.privilege_type))
    LOOP
        EXECUTE format('REVOKE %s ON relay.%I FROM %s', surplus.privilege_type, partition,
                       CASE surplus.grantee WHEN 0 THEN 'PUBLIC' ELSE surplus.grantee::regrole::text END);
    END LOOP;
END
$$;

COMMENT ON FUNCTION relay.withhold_rights(name, name) IS
    'Takes the rights on a partition from everybody who does not have them on the parent, its owner excepted.';

-- The outbox is looked after by the same means.
CREATE OR REPLACE FUNCTION relay.outbox_days() RETURNS TABLE (day date, partition regclass)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT own.first, own.partition FROM relay.partitions('outbox') AS own ORDER BY own.first
$$;

CREATE OR REPLACE FUNCTION relay.outbox_days_missing(days_ahead integer) RETURNS TABLE (day date)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT missing.first FROM relay.partitions_missing('outbox', days_ahead) AS missing ORDER BY missing.first
$$;

CREATE OR REPLACE FUNCTION relay.create_outbox_partition(day date) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT relay.create_partition('outbox', day)
$$;

CREATE OR REPLACE FUNCTION relay.lock_outbox_partitions() RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT relay.lock_partitions('outbox')
$$;

-- What a relay's role needs that owns neither the outbox nor the saga log.
CREATE OR REPLACE FUNCTION relay.grant_outbox_partitions(relay_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', relay_role);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION relay.partitions_missing(name, integer), relay.create_partition(name, date),'
        ' relay.outbox_days(), relay.outbox_days_missing(integer),'
        ' relay.create_outbox_partition(date), relay.outbox_days_expired(interval),'
        ' relay.outbox_default_expired(interval),'
        ' relay.drop_outbox_partition(date, interval, xid8, pg_lsn),'
        ' relay.prune_outbox_default(interval, xid8, pg_lsn, integer) TO %I', relay_role);
END
$$;

COMMENT ON FUNCTION relay.grant_outbox_partitions(name) IS
    'Lets a relay''s role that owns nothing look after the partitions of relay.outbox and relay.saga_log. Safe to repeat.';

REVOKE EXECUTE ON FUNCTION
    relay.partitioned(), relay.partitions(name), relay.default_partition_has(name, timestamptz, timestamptz),
    relay.partition_missing(name, date), relay.partitions_missing(name, integer), relay.lock_partitions(name),
    relay.create_partition(name, date), relay.withhold_rights(name, name)
    FROM PUBLIC;

-- Whoever has looked after the outbox so far goes on with both. And the default partition is no way around the log.
DO $$
DECLARE
    caretaker name;
BEGIN
    PERFORM relay.withhold_rights('saga_log', 'saga_log_default');
    FOR caretaker IN
        SELECT r.rolname
        FROM pg_catalog.pg_proc AS f, pg_catalog.aclexplode(f.proacl) AS given
        JOIN pg_catalog.pg_roles AS r ON r.oid = given.grantee
        WHERE f.oid = 'relay.create_outbox_partition(date)'::regprocedure AND given.grantee <> f.proowner
    LOOP
        PERFORM relay.grant_outbox_partitions(caretaker);
    END LOOP;
END
$$;
