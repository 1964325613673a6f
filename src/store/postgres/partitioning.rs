//! The migrations that partition the requests of the audit log by time.

/// The partitions of the table `log`, each with its first instant and the first one after it.
/// NULL is an open end.
macro_rules! partitions {
    () => {
        "(SELECT inhrelid::regclass AS part,
            substring(bound FROM 'FROM [(]''?(-?[0-9]+)')::bigint AS starts,
            substring(bound FROM 'TO [(]''?(-?[0-9]+)')::bigint AS ends
        FROM (SELECT inhrelid, pg_get_expr(relpartbound, oid) AS bound
            FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = log) AS bounds
        ) AS partitions"
    };
}

/// A function that runs as the owner of the log, so that a role that may only use the log can
/// add partitions and purge. It checks the rights of the caller's role. The schema is a
/// parameter, so that a schema can be renamed; since a caller may name any, the log must belong
/// to the owner of the function. What waits for a lock has others wait behind it, so
/// `wait_briefly!` limits that.
macro_rules! as_owner {
    ($create:literal, $parameters:literal, $needed:literal, $variables:literal, $($body:expr),*) => {
        concat!(
            $create, "(own_schema text, ", $parameters, ") RETURNS bigint
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
            DECLARE
                log regclass := (own_schema || '.requests')::regclass;
                caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
                present bigint := extract(epoch FROM clock_timestamp()) * 1000000;
                ", $variables, "
            BEGIN
                IF NOT has_table_privilege(caller, log, '", $needed, "') THEN
                    RAISE insufficient_privilege
                        USING MESSAGE = format('%s lacks ", $needed, " on %s', caller, log);
                END IF;
                IF NOT EXISTS (SELECT 1 FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
                    WHERE pg_class.oid = log AND rolname = current_user) THEN
                    RAISE insufficient_privilege
                        USING MESSAGE = format('%s does not belong to %s', log, current_user);
                END IF;
                ", $($body,)* "
            END
            $body$;"
        )
    };
}

macro_rules! wait_briefly {
    () => {
        "PERFORM set_config('lock_timeout', '100', true);"
    };
}

/// The existing table becomes the first partition, for all times. That takes no scan, since its
/// times are not null. `make_partitions` ends it later.
pub(super) const TABLES: &str = "
    DO $body$
    BEGIN
        IF (SELECT relrowsecurity FROM pg_class WHERE oid = '{schema}.requests'::regclass) THEN
            RAISE object_not_in_prerequisite_state USING MESSAGE = 'The policies of row-level '
                'security on {schema}.requests would not apply to the partitioned table. Disable '
                'row-level security on it, open the store, and create the policies again';
        END IF;
        IF EXISTS (SELECT 1 FROM pg_index JOIN pg_attribute ON attrelid = indrelid
            WHERE indrelid = '{schema}.requests'::regclass AND indisunique
            AND attname = 'at' AND NOT attnum = ANY (indkey)) THEN
            RAISE object_not_in_prerequisite_state USING MESSAGE = 'A unique index on '
                '{schema}.requests lacks the column at, so that the table cannot be partitioned. '
                'Drop that index';
        END IF;
    END
    $body$;
    ALTER TABLE {schema}.requests RENAME TO requests_before;
    CREATE TABLE {schema}.requests (LIKE {schema}.requests_before INCLUDING ALL)
        PARTITION BY RANGE (at);
    ALTER TABLE {schema}.requests ATTACH PARTITION {schema}.requests_before
        FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
    -- Room for the next version of a row on its page.
    ALTER TABLE {schema}.hourly_usage SET (fillfactor = 50);";

/// Makes the missing ones of the partitions for these times, for now and for the next four
/// widths. Returns the end of those without a gap from now on.
///
/// While the first partition has no end, this returns NULL. Each call that may take long takes
/// the next step towards the end. A large table is scanned by the second step alone, which lets
/// others read and write. The constraint of the first step refuses requests from after the
/// end, so a call of any kind drops it half a width before, if there was no third step.
///
/// Before the first partition there is at most one, for all earlier times. The more partitions
/// there are, the wider are new ones, and those for times far ahead are 64 times as wide.
pub(super) const MAKE: &str = as_owner!(
    "CREATE FUNCTION {schema}.make_partitions",
    "times bigint[], asked_width bigint, may_take_long boolean",
    "INSERT",
    "-- An hour to a year.
     width   bigint := least(greatest(asked_width, 3600000000), 31536000000000);
     wanted  bigint[] := times || ARRAY(SELECT present + n * width FROM generate_series(0, 4) AS n);
     place   regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = log);
     made    text;
     whole   regclass;
     closing record;
     newest  bigint;
     span    bigint;
     below   bigint;
     above   bigint;
     number  bigint;
     instant bigint;
     is_made boolean;",
    "IF EXISTS (SELECT 1 FROM unnest(wanted) AS time WHERE NOT EXISTS (SELECT 1 FROM ",
    partitions!(),
    " WHERE (starts IS NULL OR starts <= time) AND ends > time)) THEN
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', log);
        ",
    wait_briefly!(),
    "
        SELECT part INTO whole FROM ",
    partitions!(),
    " WHERE ends IS NULL;
        IF whole IS NOT NULL THEN
            SELECT conname, convalidated, substring(conname FROM '[0-9]+$')::bigint AS ends
                INTO closing FROM pg_constraint
                WHERE conrelid = whole AND conname ~ '^at_before_[0-9]+$';
            IF closing.ends < present + width / 2 THEN
                EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', whole, closing.conname);
                RETURN NULL;
            END IF;
        END IF;
        IF NOT has_schema_privilege(current_user, place, 'CREATE') THEN
            RAISE insufficient_privilege USING MESSAGE = format(
                '%s, the owner of %s, lacks CREATE on the schema, so that it cannot have '
                'partitions for the coming time', current_user, log);
        END IF;
        IF whole IS NOT NULL THEN
            IF closing.conname IS NULL THEN
                above := (present / width + 2) * width;
                EXECUTE format('SELECT max(at) FROM %s', whole) INTO newest;
                IF newest >= above THEN
                    RAISE object_not_in_prerequisite_state USING MESSAGE = format(
                        '%s cannot end at %s, since it has requests from times after that',
                        whole, to_timestamp(above / 1000000));
                END IF;
                IF pg_relation_size(whole) > 8388608 THEN
                    IF may_take_long THEN
                        EXECUTE format(
                            'ALTER TABLE %s ADD CONSTRAINT %I CHECK (at < %s) NOT VALID',
                            whole, 'at_before_' || above, above);
                    END IF;
                    RETURN NULL;
                END IF;
            ELSIF NOT closing.convalidated THEN
                IF may_take_long THEN
                    EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', whole, closing.conname);
                END IF;
                RETURN NULL;
            ELSE
                above := closing.ends;
            END IF;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', log);
            EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', log, whole);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (MINVALUE) TO (%s)',
                log, whole, above);
            IF closing.conname IS NOT NULL THEN
                EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', whole, closing.conname);
            END IF;
        END IF;
        FOREACH instant IN ARRAY ARRAY(SELECT time FROM unnest(wanted) AS time ORDER BY time) LOOP
            SELECT max(ends) FILTER (WHERE ends <= instant),
                min(starts) FILTER (WHERE starts > instant), count(*),
                coalesce(bool_or((starts IS NULL OR starts <= instant) AND ends > instant), false)
                INTO below, above, number, is_made FROM ",
    partitions!(),
    ";
            CONTINUE WHEN is_made;
            IF below IS NOT NULL OR above IS NULL THEN
                span := width << least(number / 48, 8)::integer;
                IF instant > present + 64 * width THEN
                    span := span * 64;
                END IF;
                number := instant - ((instant % span) + span) % span;
                below := greatest(number, below);
                above := least(number + span, above);
            END IF;
            made := format('%s.%I', place, 'requests_' || coalesce(to_char(
                to_timestamp(below / 1000000) AT TIME ZONE 'UTC', 'YYYYMMDD_HH24'), 'past'));
            EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', made, log);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
                log, made, coalesce(below::text, 'MINVALUE'), above);
        END LOOP;
    END IF;
    LOOP
        SELECT ends INTO above FROM ",
    partitions!(),
    " WHERE (starts IS NULL OR starts <= present) AND ends > present;
        EXIT WHEN NOT FOUND;
        present := above;
    END LOOP;
    RETURN present;"
);

/// Takes the partitions from before this instant out of the table. They are dropped by
/// `drop_partition`, which may take longer. Returns how many they are.
pub(super) const DETACH: &str = as_owner!(
    "CREATE FUNCTION {schema}.detach_partitions",
    "before bigint",
    "DELETE",
    "old    regclass;
     number bigint := 0;",
    "IF EXISTS (SELECT 1 FROM ",
    partitions!(),
    " WHERE ends <= least(before, present)) THEN
        ",
    wait_briefly!(),
    "
        EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', log);
        FOR old IN SELECT part FROM ",
    partitions!(),
    " WHERE ends <= least(before, present) LOOP
            EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', log, old);
            EXECUTE format('ALTER TABLE %s RENAME TO %I', old, 'purged_requests_' || old::oid);
            number := number + 1;
        END LOOP;
    END IF;
    RETURN number;"
);

/// Drops a detached partition, and returns how many records it had, which `$count` finds out.
/// NULL if there is no such partition.
macro_rules! drop_partition {
    ($create:literal, $variables:literal, $count:literal) => {
        as_owner!(
            $create,
            "old regclass",
            "DELETE",
            $variables,
            "EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', log);
    IF NOT EXISTS (SELECT 1 FROM pg_class AS old_table JOIN pg_class AS log_table
        USING (relnamespace, relowner)
        WHERE log_table.oid = log AND old_table.oid = old
        AND old_table.relname ~ '^purged_requests_[0-9]+$'
        AND old_table.relkind = 'r' AND NOT old_table.relispartition) THEN
        RETURN NULL;
    END IF;
    ",
            wait_briefly!(),
            "
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', old);
    ",
            $count
        )
    };
}

/// The number is exact if the partition is small, and otherwise estimated from some 1,000 of its
/// pages.
pub(super) const DROP: &str = drop_partition!(
    "CREATE FUNCTION {schema}.drop_partition",
    "percent numeric;
    number  bigint;",
    "percent := least(100, 100 * 1000.0 * current_setting('block_size')::integer
        / greatest(pg_relation_size(old), 1));
    EXECUTE format('SELECT count(*) FROM %s TABLESAMPLE SYSTEM (%s)', old, percent) INTO number;
    EXECUTE format('DROP TABLE %s', old);
    RETURN round(100 * number / percent);"
);

/// Of a large partition, which is seldom in memory, every so many pages are read, some 100 in all.
pub(super) const SAMPLE: &str = drop_partition!(
    "CREATE OR REPLACE FUNCTION {schema}.drop_partition",
    "page_size integer := current_setting('block_size')::integer;
    pages  bigint;
    step   bigint;
    number bigint;",
    "pages := pg_relation_size(old) / page_size;
    IF pages <= 1000 THEN
        EXECUTE format('SELECT count(*) FROM %s', old) INTO number;
    ELSE
        -- A page has at most a row for each 28 bytes.
        step := pages / 100;
        EXECUTE format('SELECT count(*) FROM %s WHERE ctid = ANY (ARRAY('
            'SELECT format(''(%%s,%%s)'', page, place)::tid FROM generate_series(0, $1, $2) AS page, '
            'generate_series(1, $3) AS place))', old)
            INTO number USING pages - 1, step, page_size / 28;
        number := number * pages / ((pages - 1) / step + 1);
    END IF;
    EXECUTE format('DROP TABLE %s', old);
    RETURN number;"
);

/// The new table and the functions belong to the owner of the existing table, and roles that
/// have rights on the existing table get them on the new one.
pub(super) const RIGHTS: &str = "
    DO $body$
    DECLARE
        given record;
        owner regrole := (SELECT relowner FROM pg_class
            WHERE oid = '{schema}.requests_before'::regclass);
    BEGIN
        FOR given IN
            SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role,
                privilege_type || columns AS rights
            FROM (SELECT '' AS columns, relacl AS acl FROM pg_class
                WHERE oid = '{schema}.requests_before'::regclass
                UNION ALL SELECT format('(%I)', attname), attacl FROM pg_attribute
                WHERE attrelid = '{schema}.requests_before'::regclass AND NOT attisdropped
                ) AS acls, aclexplode(acl) WHERE grantee <> owner
        LOOP
            EXECUTE format('GRANT %s ON {schema}.requests TO %s', given.rights, given.role);
        END LOOP;
        IF owner <> quote_ident(current_user)::regrole THEN
            EXECUTE format('ALTER TABLE {schema}.requests OWNER TO %s', owner);
            EXECUTE format('ALTER FUNCTION {schema}.make_partitions OWNER TO %s', owner);
            EXECUTE format('ALTER FUNCTION {schema}.detach_partitions OWNER TO %s', owner);
            EXECUTE format('ALTER FUNCTION {schema}.drop_partition OWNER TO %s', owner);
        END IF;
    END
    $body$;";
