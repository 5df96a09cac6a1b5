-- The outbox over time: partitions of a day each, made ahead and dropped when they are old and surely published.
--
-- Each function does one thing in one transaction, under locks that it waits for no longer than its lock_timeout: who
-- waits for a lock on a table has every later writer of that table behind it. They are called again when they fail.
-- Days are days of UTC, hence the TimeZone of whatever reads or writes a bound. lock_timeout is 50 ms throughout: longer
-- than a transaction of a service usually lasts, and shorter than a delay that anybody notices.

-- PostgreSQL lets a partition in only after it has read the whole default partition, with every writer of that one waiting,
-- unless a CHECK constraint proves that no row there belongs to the new one. A constraint that said so all the time would
-- refuse rows, for ever if the relay died before it is removed. This one always says yes to writers; for the moment of
-- the attachment, inside its transaction, relay.create_outbox_partition lets it say what it has looked up in the index
-- below, under a lock that lets no row in. Others never see that. Everybody who writes has to be able to execute it.
CREATE FUNCTION relay.outbox_default_holds(created_at timestamptz) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS 'SELECT true';
GRANT EXECUTE ON FUNCTION relay.outbox_default_holds(timestamptz) TO PUBLIC;

COMMENT ON FUNCTION relay.outbox_default_holds(timestamptz) IS
    'Whether a row of that time may be in relay.outbox_default: always, outside of relay.create_outbox_partition.';

ALTER TABLE relay.outbox_default
    ADD CONSTRAINT outbox_default_holds CHECK (relay.outbox_default_holds(created_at));
CREATE INDEX outbox_default_created_at ON relay.outbox_default (created_at);

-- The partitions that the relay made, by name and bounds. Others that somebody has attached are left alone.
CREATE FUNCTION relay.outbox_days() RETURNS TABLE (day date, partition regclass)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
    SELECT own.day, own.oid::regclass
    FROM (
        SELECT c.oid, c.relname, bounds,
               substring(bounds FROM '^FOR VALUES FROM \(''(\d{4}-\d\d-\d\d) 00:00:00\+00''\)')::date AS day
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) AS bounds
        WHERE i.inhparent = 'relay.outbox'::regclass
    ) AS own
    WHERE own.relname = 'outbox_p' || to_char(own.day, 'YYYYMMDD')
      AND own.bounds = format('FOR VALUES FROM (%L) TO (%L)', own.day::timestamptz, (own.day + 1)::timestamptz)
    ORDER BY own.day
$$;

COMMENT ON FUNCTION relay.outbox_days() IS 'The partitions of relay.outbox that hold a day of UTC each.';

-- A row is routed to the default partition before its writer knows of a partition that is being attached, and would be
-- refused then if it belonged there. So a day is made an hour before it begins, or not at all: rows of now are elsewhere.
CREATE FUNCTION relay.outbox_days_missing(days_ahead integer) RETURNS TABLE (day date)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT ahead.day
    FROM (SELECT current_date + n AS day FROM generate_series(1, days_ahead) AS n) AS ahead
    WHERE ahead.day::timestamptz >= now() + interval '1 hour'
      AND NOT EXISTS (SELECT FROM relay.outbox_days() AS own WHERE own.day = ahead.day)
      AND NOT EXISTS (
          SELECT FROM relay.outbox_default AS r
          WHERE r.created_at >= ahead.day::timestamptz AND r.created_at < (ahead.day + 1)::timestamptz)
    ORDER BY ahead.day
$$;

COMMENT ON FUNCTION relay.outbox_days_missing(integer) IS
    'The next days that have no partition and no rows in the default partition. Takes no lock that anybody waits for.';

CREATE FUNCTION relay.create_outbox_partition(day date) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '50ms' AS $$
DECLARE
    partition CONSTANT name := 'outbox_p' || to_char(day, 'YYYYMMDD');
    first CONSTANT timestamptz := day;
    beyond CONSTANT timestamptz := day + 1;
BEGIN
    PERFORM relay.lock_outbox_partitions();
    IF day NOT IN (SELECT m.day FROM relay.outbox_days_missing(day - current_date) AS m) THEN
        RETURN false;
    END IF;
    -- Made aside, and then attached: a partition that is created in place locks out the writers of every partition.
    EXECUTE format('CREATE TABLE relay.%I (LIKE relay.outbox INCLUDING ALL EXCLUDING IDENTITY)', partition);
    LOCK TABLE relay.outbox_default IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM relay.outbox_default AS r WHERE r.created_at >= first AND r.created_at < beyond) THEN
        EXECUTE format('DROP TABLE relay.%I', partition);
        RETURN false;
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION relay.outbox_default_holds(created_at timestamptz) RETURNS boolean'
                   ' LANGUAGE sql IMMUTABLE AS %L', format('SELECT created_at < %L OR created_at >= %L', first, beyond));
    EXECUTE format('ALTER TABLE relay.outbox ATTACH PARTITION relay.%I FOR VALUES FROM (%L) TO (%L)',
                   partition, first, beyond);
    CREATE OR REPLACE FUNCTION relay.outbox_default_holds(created_at timestamptz) RETURNS boolean
        LANGUAGE sql IMMUTABLE AS 'SELECT true';
    RETURN true;
END
$$;

COMMENT ON FUNCTION relay.create_outbox_partition(date) IS
    'Makes the partition of a day to come. False if it is there, the day is near, or the default partition has rows of it.';

-- Two relays that work on slots of one database share the outbox.
CREATE FUNCTION relay.lock_outbox_partitions() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('relay.outbox', 0)) THEN
        RAISE EXCEPTION 'somebody else works on the partitions of relay.outbox' USING ERRCODE = 'lock_not_available';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the partitions of relay.outbox are looked after in READ COMMITTED: what is looked at under a '
            'lock has to be what is there' USING ERRCODE = 'invalid_transaction_state';
    END IF;
END
$$;

CREATE FUNCTION relay.outbox_days_expired(retention interval) RETURNS TABLE (day date)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT own.day FROM relay.outbox_days() AS own WHERE (own.day + 1)::timestamptz <= now() - retention ORDER BY own.day
$$;

COMMENT ON FUNCTION relay.outbox_days_expired(interval) IS
    'The days with a partition that ended longer than `retention` ago.';

CREATE FUNCTION relay.outbox_default_expired(retention interval) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM relay.outbox_default AS r WHERE r.created_at < now() - retention)
$$;

COMMENT ON FUNCTION relay.outbox_default_expired(interval) IS
    'Whether the default partition has rows that are older than `retention`.';

CREATE FUNCTION relay.outbox_slot_behind(flushed pg_lsn) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.slot
    FROM relay.checkpoint AS c
    LEFT JOIN pg_replication_slots AS s ON s.slot_name = c.slot AND s.database = current_database()
    WHERE c.state <> 'streaming' OR s.confirmed_flush_lsn IS NULL OR s.confirmed_flush_lsn < flushed
    ORDER BY c.slot LIMIT 1
$$;

COMMENT ON FUNCTION relay.outbox_slot_behind(pg_lsn) IS
    'A slot in relay.checkpoint that is gone, copies older rows still, or has not confirmed this position; null if none.';

-- Published is every row with txid < `before`, where `before` is the xmin of a snapshot, and `flushed` the insert position
-- of the WAL read after that snapshot was taken, once each slot has confirmed `flushed`: each of these transactions had
-- ended by then, so that its commit lies before that position.
CREATE FUNCTION relay.drop_outbox_partition(day date, retention interval, before xid8, flushed pg_lsn) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
    partition regclass;
    open boolean;
BEGIN
    PERFORM relay.lock_outbox_partitions();
    SELECT own.partition INTO partition FROM relay.outbox_days() AS own
    WHERE own.day = drop_outbox_partition.day
      AND own.day IN (SELECT e.day FROM relay.outbox_days_expired(retention) AS e);
    IF partition IS NULL THEN
        RETURN NULL;
    END IF;
    IF relay.outbox_slot_behind(flushed) IS NOT NULL THEN
        RAISE EXCEPTION 'slot % has not confirmed %', relay.outbox_slot_behind(flushed), flushed
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE txid >= $1)', partition) INTO open USING before;
    IF NOT open THEN
        -- Nobody writes rows of so long ago, but somebody might. From here on nobody can, to this partition, and whoever
        -- did has committed. It was read a moment ago, so this is quick.
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', partition);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE txid >= $1)', partition) INTO open USING before;
    END IF;
    IF open THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %s', partition);
    RETURN true;
END
$$;

COMMENT ON FUNCTION relay.drop_outbox_partition(date, interval, xid8, pg_lsn) IS
    'Drops the partition of a day that is past `retention`. False if a row of it may be unpublished, null if there is none.';

CREATE FUNCTION relay.prune_outbox_default(retention interval, before xid8, flushed pg_lsn, most integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    pruned integer;
BEGIN
    IF relay.outbox_slot_behind(flushed) IS NOT NULL THEN
        RAISE EXCEPTION 'slot % has not confirmed %', relay.outbox_slot_behind(flushed), flushed
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    DELETE FROM relay.outbox_default AS r WHERE r.ctid = ANY (ARRAY(
        SELECT o.ctid FROM relay.outbox_default AS o
        WHERE o.created_at < now() - retention AND o.txid < before ORDER BY o.created_at LIMIT most));
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END
$$;

COMMENT ON FUNCTION relay.prune_outbox_default(interval, xid8, pg_lsn, integer) IS
    'Deletes published rows older than `retention` from the default partition, the oldest first. How many: up to `most`.';

-- What a relay's role needs that does not own the outbox.
CREATE FUNCTION relay.grant_outbox_partitions(relay_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', relay_role);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION relay.outbox_days(), relay.outbox_days_missing(integer),'
        ' relay.create_outbox_partition(date), relay.outbox_days_expired(interval),'
        ' relay.outbox_default_expired(interval),'
        ' relay.drop_outbox_partition(date, interval, xid8, pg_lsn),'
        ' relay.prune_outbox_default(interval, xid8, pg_lsn, integer) TO %I', relay_role);
END
$$;

COMMENT ON FUNCTION relay.grant_outbox_partitions(name) IS
    'Lets a relay''s role that does not own relay.outbox look after its partitions. Safe to repeat.';

REVOKE EXECUTE ON FUNCTION
    relay.outbox_days(), relay.outbox_days_missing(integer), relay.create_outbox_partition(date),
    relay.lock_outbox_partitions(), relay.outbox_days_expired(interval), relay.outbox_default_expired(interval),
    relay.outbox_slot_behind(pg_lsn), relay.drop_outbox_partition(date, interval, xid8, pg_lsn),
    relay.prune_outbox_default(interval, xid8, pg_lsn, integer), relay.grant_outbox_partitions(name)
    FROM PUBLIC;
