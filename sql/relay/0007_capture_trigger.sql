-- Trigger capture: changes of any table become rows of the outbox, in the transaction that makes them.
--
-- Whoever writes to a captured table needs no right on the outbox: the triggers' functions run as their owner. So they
-- must not run code of anybody else, wherever it comes from: see relay.foreign_json_cast.

-- As the key of a message reads: the values as PostgreSQL prints them; several are joined by /, with / and % in them as %2F
-- and %25. A null reads like an empty text.
CREATE FUNCTION relay.captured_id(captured record, key text[]) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    part text;
    value text;
    id text;
BEGIN
    FOREACH part IN ARRAY key LOOP
        EXECUTE format('SELECT format(''%%s'', ($1).%I)', part) INTO value USING captured;
        IF cardinality(key) > 1 THEN
            value := replace(replace(value, '%', '%25'), '/', '%2F');
        END IF;
        id := concat(id || '/', value);
    END LOOP;
    RETURN id;
END
$$;

-- Not to_json() of the whole row with members taken out of it: PostgreSQL reads no json with \u0000 in it.
CREATE FUNCTION relay.captured_row(captured record, columns text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    image text;
BEGIN
    IF columns IS NULL THEN
        RETURN to_json(captured);
    END IF;
    EXECUTE format('SELECT to_json(r) FROM (SELECT %s) AS r', columns) INTO image USING captured;
    RETURN image;
END
$$;

CREATE FUNCTION relay.primary_key(captured regclass) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_index AS i
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[:i.indnkeyatts - 1])
    WHERE i.indrelid = captured AND i.indisprimary
$$;

COMMENT ON FUNCTION relay.primary_key(regclass) IS 'The columns of the primary key of a table; null if it has none.';

CREATE FUNCTION relay.send_capture(aggregate_type text, id text, type text, op text, before text, after text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)
    VALUES (aggregate_type, id, type, concat('{"op":"', op, '","before":', before, ',"after":', after, '}')::json);
END
$$;

-- Arguments: aggregate type; the columns that are the key, none for the primary key; the columns that are left out. Columns
-- are looked at with each row: they may have been renamed or dropped since, and what is to be left out must not come back
-- under another name. Those of a partition may stand in another order than its root's, so the root decides. How the writer's
-- session prints values does not show, but for money.
CREATE FUNCTION relay.capture_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET intervalstyle = 'iso_8601'
SET bytea_output = 'hex' SET extra_float_digits = 1 AS $$
DECLARE
    first_made_type CONSTANT oid := 16384;  -- FirstNormalObjectId of PostgreSQL: those below are its own
    root CONSTANT oid := coalesce(pg_partition_root(TG_RELID), TG_RELID);
    key text[] := TG_ARGV[1];
    hidden CONSTANT text[] := TG_ARGV[2];
    there integer;
    has_made_types boolean;
    shown text;
    primary_key text[];
    before text := 'null';
    after text := 'null';
    old_id text;
    new_id text;
BEGIN
    -- Triggers see no value of virtual columns (attgenerated v): they are left out, too, rather than called null.
    SELECT count(*) FILTER (WHERE a.attname = ANY (key || hidden)),
           bool_or(a.atttypid >= first_made_type),
           CASE WHEN bool_or(a.attname = ANY (hidden) OR a.attgenerated = 'v') THEN
               string_agg(format('($1).%I', a.attname), ', ' ORDER BY a.attnum)
               FILTER (WHERE a.attname <> ALL (hidden) AND a.attgenerated <> 'v') END,
           array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY ((
               SELECT (i.indkey::int2[])[:i.indnkeyatts - 1] FROM pg_index AS i
               WHERE i.indrelid = root AND i.indisprimary)::int2[]))
    INTO there, has_made_types, shown, primary_key
    FROM pg_attribute AS a WHERE a.attrelid = root AND a.attnum > 0 AND NOT a.attisdropped;
    IF there <> cardinality(key || hidden) OR (key = '{}' AND primary_key IS NULL) THEN
        RAISE EXCEPTION '% no longer has % that its capture needs', root::regclass,
                CASE WHEN there <> cardinality(key || hidden) THEN 'a column' ELSE 'the primary key' END
            USING ERRCODE = 'undefined_column', HINT = format(
                'Capture it anew with relay.capture_table. Its key: %s. Left out: %s.',
                CASE WHEN key = '{}' THEN 'the primary key' ELSE TG_ARGV[1] END, TG_ARGV[2]);
    END IF;
    IF key = '{}' THEN
        key := primary_key;
    END IF;
    IF has_made_types AND relay.foreign_json_cast(root) IS NOT NULL THEN
        RAISE EXCEPTION 'the type % has a cast to json that the capture of % does not trust',
                relay.foreign_json_cast(root), root::regclass
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'Drop the cast, or have a superuser own its function.';
    END IF;
    IF TG_OP <> 'INSERT' THEN
        old_id := relay.captured_id(OLD, key);
        before := relay.captured_row(OLD, shown);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_id := relay.captured_id(NEW, key);
        after := relay.captured_row(NEW, shown);
    END IF;
    IF TG_OP = 'UPDATE' AND old_id = new_id THEN
        IF before <> after THEN
            PERFORM relay.send_capture(TG_ARGV[0], new_id, 'updated', 'update', before, after);
        END IF;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        PERFORM relay.send_capture(TG_ARGV[0], old_id, 'deleted', 'delete', before, 'null');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM relay.send_capture(TG_ARGV[0], new_id, 'inserted', 'insert', 'null', after);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION relay.capture_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM relay.send_capture(TG_ARGV[0], '', 'truncated', 'truncate', 'null', 'null');
    RETURN NULL;
END
$$;

-- to_json() of a type that somebody has made calls that type's cast to json, if there is one, and that is code of the one
-- who made it. What superusers made (hstore, PostGIS) is trusted, and what the triggers' owner made.
CREATE FUNCTION relay.foreign_json_cast(captured regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE foreign_cast AS (
        SELECT c.castsource FROM pg_cast AS c
        JOIN pg_proc AS p ON p.oid = c.castfunc
        JOIN pg_roles AS r ON r.oid = p.proowner
        WHERE c.casttarget = 'json'::regtype AND NOT r.rolsuper
          AND p.proowner <> (SELECT f.proowner FROM pg_proc AS f WHERE f.oid = 'relay.capture_row()'::regprocedure)
    ), made_of (type) AS (
        SELECT a.atttypid FROM pg_attribute AS a
        WHERE a.attrelid = captured AND a.attnum > 0 AND NOT a.attisdropped AND EXISTS (SELECT FROM foreign_cast)
        UNION
        SELECT part.type FROM made_of AS m JOIN pg_type AS t ON t.oid = m.type CROSS JOIN LATERAL (
            SELECT t.typelem UNION ALL SELECT t.typbasetype UNION ALL
            SELECT a.atttypid FROM pg_attribute AS a
            WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS part (type)
        WHERE part.type <> 0
    )
    SELECT min(format_type(m.type, NULL)) FROM made_of AS m JOIN foreign_cast AS c ON c.castsource = m.type
$$;

COMMENT ON FUNCTION relay.foreign_json_cast(regclass) IS
    'A type in the rows of a table whose cast to json is the code of somebody whom the capture does not trust; null if none.';

-- What cannot be captured is refused here, and not when somebody writes to it.
CREATE FUNCTION relay.require_capturable(captured regclass, key text[], exclude text[]) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own CONSTANT pg_class := (SELECT c FROM pg_class AS c WHERE c.oid = captured);
    effective_key CONSTANT text[] := coalesce(key, relay.primary_key(captured));
    lacking text;
    wrong text;
BEGIN
    SELECT string_agg(coalesce(quote_ident(n.name), 'null'), ', ') INTO lacking
    FROM unnest(effective_key || exclude) AS n (name)
    WHERE NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = captured AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped);
    wrong := CASE
        WHEN own.relnamespace = 'relay'::regnamespace THEN 'is one of the relay''s own tables'
        WHEN own.relkind IS NULL OR own.relkind NOT IN ('r', 'p') THEN 'is not a table'
        WHEN own.relpersistence = 't' THEN 'is a temporary table'
        WHEN own.relispartition THEN format('is a partition: capture %s', pg_partition_root(captured))
        WHEN effective_key IS NULL THEN 'has no primary key: say what tells its rows apart, key => ARRAY[''column'']'
        WHEN effective_key = '{}' THEN 'cannot be captured with an empty key'
        WHEN lacking IS NOT NULL THEN format('has no column %s', lacking)
        WHEN (SELECT count(DISTINCT n) FROM unnest(key || exclude) AS n) < cardinality(key || exclude)
            THEN 'cannot be captured with a column that is named twice'
        WHEN effective_key && exclude THEN 'cannot be captured without a column of its key, which is in every message'
        WHEN EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = captured AND a.attname = ANY (effective_key) AND a.attgenerated = 'v'
        ) THEN 'cannot be captured with a virtual column as its key: triggers do not see its value'
        WHEN relay.foreign_json_cast(captured) IS NOT NULL THEN format(
            'has the type %s, whose cast to json is not a superuser''s', relay.foreign_json_cast(captured))
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '% %', captured, wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Triggers fire in the order of their names. These come before those of foreign keys and of the application: what those change
-- comes later in the write-ahead log, too.
CREATE FUNCTION relay.capture_table(
    captured regclass, aggregate_type text DEFAULT NULL, key text[] DEFAULT NULL, exclude text[] DEFAULT NULL
) RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hidden CONSTANT text[] := coalesce(exclude, '{}');
    named text;
BEGIN
    PERFORM relay.require_capturable(captured, key, hidden);
    SELECT coalesce(aggregate_type, n.nspname || '.' || c.relname) INTO named
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = captured;
    EXECUTE format('CREATE OR REPLACE TRIGGER "0_relay_capture" AFTER INSERT OR UPDATE OR DELETE ON %s'
                   ' FOR EACH ROW EXECUTE FUNCTION relay.capture_row(%L, %L, %L)',
                   captured, named, coalesce(key, '{}'), hidden);
    EXECUTE format('CREATE OR REPLACE TRIGGER "0_relay_capture_truncate" AFTER TRUNCATE ON %s'
                   ' FOR EACH STATEMENT EXECUTE FUNCTION relay.capture_truncate(%L)', captured, named);
END
$$;

COMMENT ON FUNCTION relay.capture_table(regclass, text, text[], text[]) IS
    'Sends every change of a table through the outbox from here on. Safe to repeat: what is given replaces what was.';

CREATE FUNCTION relay.release_table(captured regclass) RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    trigger name;
BEGIN
    FOR trigger IN SELECT t.tgname FROM pg_trigger AS t
        WHERE t.tgrelid = captured AND t.tgparentid = 0
          AND t.tgfoid IN ('relay.capture_row()'::regprocedure, 'relay.capture_truncate()'::regprocedure)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger, captured);
    END LOOP;
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION relay.release_table(regclass) IS
    'Undoes relay.capture_table. Whether the table was captured.';

CREATE OR REPLACE FUNCTION relay.grant_service(service_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA relay TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT ON relay.outbox, relay.inbox, relay.saga_log, relay.event_store TO %I', service_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON relay.saga TO %I', service_role);
    -- It may capture its own tables. It may write any message anyway.
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION relay.capture_table(regclass, text, text[], text[]), relay.release_table(regclass),'
        ' relay.require_capturable(regclass, text[], text[]), relay.primary_key(regclass),'
        ' relay.foreign_json_cast(regclass), relay.capture_row(), relay.capture_truncate() TO %I', service_role);
END
$$;

-- Who may make a trigger of these functions may write messages.
REVOKE EXECUTE ON FUNCTION
    relay.capture_table(regclass, text, text[], text[]), relay.release_table(regclass),
    relay.require_capturable(regclass, text[], text[]), relay.primary_key(regclass), relay.foreign_json_cast(regclass),
    relay.capture_row(), relay.capture_truncate(), relay.captured_id(record, text[]), relay.captured_row(record, text),
    relay.send_capture(text, text, text, text, text, text)
    FROM PUBLIC;
