CREATE SCHEMA IF NOT EXISTS es;

-- One row: the only serialisation point of the log.
CREATE TABLE es.log_head (
  id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
  log_id uuid NOT NULL DEFAULT gen_random_uuid(),
  epoch int NOT NULL DEFAULT 1,
  position bigint NOT NULL DEFAULT 0,
  partitioned_to bigint NOT NULL DEFAULT 10000000
) WITH (fillfactor = 10);
INSERT INTO es.log_head DEFAULT VALUES;

CREATE TABLE es.category_head (            -- gapless per-category counters
  category text PRIMARY KEY, seq bigint NOT NULL, position bigint NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE es.stream_head (              -- optimistic concurrency
  stream_id text PRIMARY KEY, version bigint NOT NULL, position bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE es.command_dedup (            -- idempotency keys, pruned after 7 days
  command_id uuid PRIMARY KEY, stream_id text NOT NULL,
  stream_version bigint NOT NULL, first_position bigint NOT NULL, last_position bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON es.command_dedup USING brin (created_at);

CREATE TABLE es.events (
  position bigint NOT NULL,
  category text NOT NULL, category_seq bigint NOT NULL,
  stream_id text NOT NULL, stream_version bigint NOT NULL,
  event_id uuid NOT NULL, type text NOT NULL, schema_version smallint NOT NULL,
  compaction_key text, tombstone boolean NOT NULL DEFAULT false,
  data bytea NOT NULL CHECK (octet_length(data) <= 65536),
  meta jsonb NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (position)
) PARTITION BY RANGE (position);
CREATE TABLE es.events_p0 PARTITION OF es.events FOR VALUES FROM (1) TO (10000001);
CREATE INDEX ON es.events (category, category_seq);
CREATE INDEX ON es.events (stream_id, stream_version);
CREATE INDEX ON es.events USING brin (recorded_at);

CREATE TABLE es.latest (                   -- compaction index: last event per key
  category text NOT NULL, compaction_key text NOT NULL,
  position bigint NOT NULL, tombstone boolean NOT NULL,
  PRIMARY KEY (category, compaction_key)
) WITH (fillfactor = 70);

CREATE TABLE es.instances (                -- leases of running processes
  instance_id text PRIMARY KEY, slot text NOT NULL, service text NOT NULL,
  url text NOT NULL DEFAULT '', ops_url text NOT NULL DEFAULT '', pid int NOT NULL DEFAULT 0,
  host text NOT NULL DEFAULT '', version text NOT NULL DEFAULT '',
  started_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz NOT NULL
);
CREATE INDEX ON es.instances (slot);

CREATE TABLE es.dead_letters (             -- messages that a consumer gave up on; the payload is in es.events
  consumer text NOT NULL, position bigint NOT NULL, reason text NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, position)
);

CREATE FUNCTION es.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'events are immutable: append a new event instead' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON es.events FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON es.events FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();

-- Adds partitions until positions up to p_needed have a place. Called ahead of need by the relay, and by append itself
-- should nobody have done so.
CREATE FUNCTION es.ensure_partitions(p_needed bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_to bigint;
BEGIN
  SELECT h.partitioned_to INTO v_to FROM es.log_head h WHERE h.id = 1 FOR UPDATE;
  WHILE v_to < p_needed LOOP
    EXECUTE format('CREATE TABLE es.events_p%s PARTITION OF es.events FOR VALUES FROM (%s) TO (%s)',
                   v_to / 10000000, v_to + 1, v_to + 10000001);
    v_to := v_to + 10000000;
    UPDATE es.log_head SET partitioned_to = v_to WHERE id = 1;
  END LOOP;
END $$;

-- c_*: one element per command (a stream_id / command_id at most once per call); e_*: flattened events, in command
-- order. A command is atomic and may emit events into several categories (e.g. server.ready + route.set).
CREATE FUNCTION es.append(
  c_id uuid[], c_stream text[], c_expected bigint[], c_n int[],
  e_cmd int[], e_id uuid[], e_category text[], e_type text[], e_ver smallint[], e_key text[], e_tomb boolean[],
  e_data bytea[], e_meta jsonb[]
) RETURNS TABLE (cmd_no int, status text, stream_version bigint, first_position bigint, last_position bigint)
-- A session keeps the plan that it made when the tables were empty: it would read them whole, and every append would
-- take longer than the last. LATERAL … OFFSET 0 and the first setting make it look each stream and command up by its
-- key. Without the second it would plan each call anew, which takes longer than the call.
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE v_pos bigint; v_to bigint;
BEGIN
  SELECT h.position, h.partitioned_to INTO v_pos, v_to FROM es.log_head h WHERE h.id = 1 FOR UPDATE;  -- held to commit
  IF v_pos + cardinality(e_id) > v_to THEN
    PERFORM es.ensure_partitions(v_pos + cardinality(e_id));
  END IF;
  RETURN QUERY
  WITH cmd AS MATERIALIZED (
    SELECT u.ord::int AS cmd_no, u.cid, u.sid, u.exp, u.n, (sum(u.n) OVER (ORDER BY u.ord) - u.n) AS e_off
    FROM unnest(c_id, c_stream, c_expected, c_n) WITH ORDINALITY AS u(cid, sid, exp, n, ord)
  ), chk AS MATERIALIZED (
    SELECT cmd.*, coalesce(sh.version, 0) AS cur, d.command_id IS NOT NULL AS is_dup,
           d.stream_version AS d_ver, d.first_position AS d_first, d.last_position AS d_last
    FROM cmd LEFT JOIN LATERAL (SELECT * FROM es.stream_head s WHERE s.stream_id = cmd.sid OFFSET 0) sh ON true
             LEFT JOIN LATERAL (SELECT * FROM es.command_dedup c WHERE c.command_id = cmd.cid OFFSET 0) d ON true
  ), ok AS MATERIALIZED (
    SELECT chk.*, (sum(n) OVER (ORDER BY cmd_no) - n)::bigint AS p_off
    FROM chk WHERE NOT is_dup AND (exp IS NULL OR exp = cur)
  ), ev AS MATERIALIZED (
    SELECT v_pos + ok.p_off + (x.ord - ok.e_off)::bigint AS pos, ok.cur + (x.ord - ok.e_off)::bigint AS sver, ok.sid,
           x.*, row_number() OVER (PARTITION BY x.cat ORDER BY x.ord) AS cat_n
    FROM unnest(e_cmd, e_id, e_category, e_type, e_ver, e_key, e_tomb, e_data, e_meta)
         WITH ORDINALITY AS x(cno, id, cat, typ, ver, key, tomb, data, meta, ord)
    JOIN ok ON ok.cmd_no = x.cno
  ), tot AS (SELECT cat, count(*) AS n, max(pos) AS pos FROM ev GROUP BY cat
  ), cat AS (
    INSERT INTO es.category_head AS ch (category, seq, position) SELECT cat, n, pos FROM tot
    ON CONFLICT (category) DO UPDATE SET seq = ch.seq + excluded.seq, position = excluded.position
    RETURNING ch.category, ch.seq
  ), ins AS (
    INSERT INTO es.events (position, category, category_seq, stream_id, stream_version, event_id, type,
                           schema_version, compaction_key, tombstone, data, meta)
    SELECT ev.pos, ev.cat, cat.seq - tot.n + ev.cat_n, ev.sid, ev.sver, ev.id, ev.typ, ev.ver, ev.key, ev.tomb,
           ev.data, ev.meta
    FROM ev JOIN tot ON tot.cat = ev.cat JOIN cat ON cat.category = ev.cat
  ), lat AS (
    INSERT INTO es.latest AS l (category, compaction_key, position, tombstone)
    SELECT DISTINCT ON (cat, key) cat, key, pos, tomb FROM ev WHERE key IS NOT NULL ORDER BY cat, key, pos DESC
    ON CONFLICT (category, compaction_key) DO UPDATE SET position = excluded.position, tombstone = excluded.tombstone
  ), sh AS (
    INSERT INTO es.stream_head AS s (stream_id, version, position)
    SELECT sid, cur + n, v_pos + p_off + n FROM ok
    ON CONFLICT (stream_id) DO UPDATE SET version = excluded.version, position = excluded.position
  ), dd AS (
    INSERT INTO es.command_dedup (command_id, stream_id, stream_version, first_position, last_position)
    SELECT cid, sid, cur + n, v_pos + p_off + 1, v_pos + p_off + n FROM ok
  ), hd AS (
    UPDATE es.log_head SET position = v_pos + (SELECT sum(n) FROM ok) WHERE id = 1 AND EXISTS (SELECT 1 FROM ok)
  )
  SELECT c.cmd_no, CASE WHEN c.is_dup THEN 'duplicate' WHEN ok.cmd_no IS NULL THEN 'conflict' ELSE 'ok' END,
         CASE WHEN c.is_dup THEN c.d_ver WHEN ok.cmd_no IS NULL THEN c.cur ELSE c.cur + c.n END,
         CASE WHEN c.is_dup THEN c.d_first WHEN ok.cmd_no IS NOT NULL THEN v_pos + ok.p_off + 1 END,
         CASE WHEN c.is_dup THEN c.d_last WHEN ok.cmd_no IS NOT NULL THEN v_pos + ok.p_off + ok.n END
  FROM chk c LEFT JOIN ok USING (cmd_no) ORDER BY c.cmd_no;
END $$;

-- For people: what `data` says.
CREATE VIEW es.readable AS
  SELECT position, type, stream_id, stream_version, convert_from(data, 'utf8')::jsonb AS data, meta, recorded_at
  FROM es.events;
