-- What Remit needs in database {{ident .Database}}, for the installation {{.Installation}}. Run it as a superuser, in that database, and again
-- after every change of the target's views: it makes everything anew, in one transaction. Live leases go on.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

-- 1. Roles. The broker is Remit: it can log in and call four functions. The definer runs those functions and can make roles; the owner
-- reads and writes the tables for the views. Nobody can log in as these two.
DO $remit$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY[{{literals .Roles}}] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
  END LOOP;
  -- Policies of before, and groups of views that are not declared any more.
  FOR r IN SELECT format('%I ON %s', polname, polrelid::regclass) FROM pg_policy WHERE polname ~ {{literal .PolicyPattern}} LOOP
    EXECUTE 'DROP POLICY ' || r;
  END LOOP;
  FOR r IN SELECT rolname FROM pg_roles WHERE rolname ~ {{literal .GroupPattern}} AND rolname <> ALL (ARRAY[{{literals .Groups}}]) LOOP
    EXECUTE format('DROP OWNED BY %I; DROP ROLE %I', r, r);
  END LOOP;
END $remit$;
ALTER ROLE {{ident .Broker}} LOGIN NOINHERIT NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;
ALTER ROLE {{ident .Definer}} NOLOGIN INHERIT NOSUPERUSER CREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;
ALTER ROLE {{ident .Owner}} NOLOGIN NOINHERIT NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;
GRANT pg_signal_backend TO {{ident .Definer}};
{{if .Logged}}GRANT SET ON PARAMETER log_min_duration_statement TO {{ident .Definer}}; -- so that leases log what they do
{{end}}{{range .Views}}GRANT {{ident $.Lease}} TO {{ident .Group}};
GRANT {{ident .Group}} TO {{ident $.Definer}} WITH ADMIN OPTION;
{{end}}
-- 2. What PUBLIC has, every lease has, too. Whoever else lives from it needs a grant of its own first.
REVOKE ALL ON DATABASE {{ident .Database}} FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
DO $remit$
DECLARE d name;
BEGIN
  FOR d IN SELECT datname FROM pg_database WHERE datallowconn LOOP
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', d);
  END LOOP;
END $remit$;
GRANT CONNECT ON DATABASE {{ident .Database}} TO {{ident .Broker}}, {{ident .Lease}};

-- 3. The schema.
CREATE SCHEMA IF NOT EXISTS remit;
REVOKE ALL ON SCHEMA remit FROM PUBLIC;
GRANT USAGE ON SCHEMA remit TO {{ident .Broker}}, {{ident .Definer}}, {{ident .Owner}}, {{ident .Lease}};
DROP OWNED BY {{ident .Owner}}{{range .Groups}}, {{ident .}}{{end}}; -- the views of before, and rights on tables
GRANT USAGE ON SCHEMA remit TO {{ident .Owner}};

-- One row for each lease: the authority. No row, no rows. The values of the view's keys stand in columns of their types, so that no statement
-- has to read them from text.
CREATE TABLE IF NOT EXISTS remit.scope (role name PRIMARY KEY, at_view name NOT NULL, expires timestamptz NOT NULL);
ALTER TABLE remit.scope ADD COLUMN IF NOT EXISTS masked text[]; -- columns that read as NULL
ALTER TABLE remit.scope ADD COLUMN IF NOT EXISTS most bigint; -- rows that are seen; NULL: all
{{range .KeyColumns}}ALTER TABLE remit.scope ADD COLUMN IF NOT EXISTS {{ident .Name}} {{.Type}}[];
{{end -}}
-- Columns that no view needs: each costs every statement a little.
{{range .NoColumns}}ALTER TABLE remit.scope DROP COLUMN IF EXISTS {{ident .}};
{{end -}}
-- Of before keys had types: a lease of then sees nothing any more.
ALTER TABLE remit.scope DROP COLUMN IF EXISTS key1, DROP COLUMN IF EXISTS key2, DROP COLUMN IF EXISTS key3, DROP COLUMN IF EXISTS key4;
CREATE TABLE IF NOT EXISTS remit.declared (name name PRIMARY KEY, grp name NOT NULL, readonly boolean NOT NULL, fingerprint text);
ALTER TABLE remit.declared ADD COLUMN IF NOT EXISTS key_columns text[]; -- of remit.scope, in the order of the keys
ALTER TABLE remit.declared ADD COLUMN IF NOT EXISTS at_schema name, ADD COLUMN IF NOT EXISTS at_table name; -- held by policies there
CREATE TABLE IF NOT EXISTS remit.installed (one boolean PRIMARY KEY DEFAULT true CHECK (one), digest text NOT NULL, functions text NOT NULL);
REVOKE ALL ON remit.scope, remit.declared, remit.installed FROM PUBLIC;
GRANT SELECT ON remit.scope TO {{ident .Owner}};
GRANT SELECT, INSERT, DELETE ON remit.scope TO {{ident .Definer}};
GRANT SELECT ON remit.declared TO {{ident .Definer}}, {{ident .Broker}};
GRANT SELECT ON remit.installed TO {{ident .Definer}}, {{ident .Broker}};

-- 4. The functions: all that the broker can do. Below PostgreSQL 16 a login with CREATEROLE could give itself almost anything; these
-- can make and drop roles of leases, and nothing else.
-- In plpgsql, which keeps the plan: planning this query costs more than running it, and every lease asks it.
CREATE OR REPLACE FUNCTION remit.view_fingerprint(of_view name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $remit$
BEGIN
  RETURN (SELECT encode(sha256(convert_to(concat_ws('|', pg_get_viewdef(c.oid), pg_get_userbyid(c.relowner), c.reloptions, c.relacl, c.relhastriggers, c.relkind,
    (SELECT count(*) FROM pg_rewrite r WHERE r.ev_class = c.oid),
    (SELECT string_agg(concat_ws(' ', a.attname, a.atttypid::regtype, a.attacl), ',' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)),
    'UTF8')), 'hex')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'remit' AND c.relname = of_view);
END $remit$;

CREATE OR REPLACE FUNCTION remit.fingerprint(of_view name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $remit$
DECLARE d remit.declared;
BEGIN
  SELECT * INTO d FROM remit.declared x WHERE x.name = of_view;
  IF d.at_table IS NULL THEN RETURN remit.view_fingerprint(of_view); END IF;
  -- Of a table that policies hold: row security, its two policies, the view on which they rest, and what the group and everybody may do.
  RETURN (SELECT encode(sha256(convert_to(concat_ws('|', c.relkind, c.relrowsecurity, remit.view_fingerprint('mine'),
    (SELECT string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles::regrole[], pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid)), ',' ORDER BY p.polname)
      FROM pg_policy p WHERE p.polrelid = c.oid AND (SELECT g.oid FROM pg_roles g WHERE g.rolname = d.grp) = ANY (p.polroles)),
    (SELECT string_agg(x.privilege_type, ' ' ORDER BY x.privilege_type) FROM aclexplode(c.relacl) x LEFT JOIN pg_roles g ON g.oid = x.grantee WHERE x.grantee = 0 OR g.rolname = d.grp),
    (SELECT string_agg(concat_ws(' ', a.attname, a.atttypid::regtype,
        (SELECT string_agg(x.privilege_type, ' ' ORDER BY x.privilege_type) FROM aclexplode(a.attacl) x LEFT JOIN pg_roles g ON g.oid = x.grantee WHERE x.grantee = 0 OR g.rolname = d.grp)), ',' ORDER BY a.attnum)
      FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)), 'UTF8')), 'hex')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = d.at_schema AND c.relname = d.at_table AND c.relrowsecurity);
END $remit$;

CREATE OR REPLACE FUNCTION remit.role_of(lease text) RETURNS name
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $remit$
BEGIN
  IF lease IS NULL OR lease !~ '^[a-z2-7]{26}$' THEN
    RAISE EXCEPTION 'not the id of a lease' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  RETURN ({{literal .Prefix}} || lease)::name;
END $remit$;

DROP FUNCTION IF EXISTS remit.lease_begin(text, text, text, timestamptz, text[], text[], text[], text[]); -- of before there were masks,
DROP FUNCTION IF EXISTS remit.lease_begin(text, text, text, timestamptz, text[], text[], text[], text[], text[]); -- limits,
DROP FUNCTION IF EXISTS remit.lease_begin(text, text, text, timestamptz, text[], text[], text[], text[], text[], bigint); -- and several at once
-- Makes all leases that are wanted, or none, if this set-up is the one that Remit means: the views are as its files say, not as they said
-- before. A view is compared with how it was set up once for all of its leases.
CREATE OR REPLACE FUNCTION remit.lease_begin(wanted jsonb, of_setup text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $remit$
DECLARE
  w record;
  v remit.declared;
  login name;
BEGIN
  IF NOT EXISTS (SELECT FROM remit.installed i WHERE i.digest = of_setup) THEN
    RAISE EXCEPTION 'the set-up was last run for other views, or by another release' USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  FOR w IN SELECT * FROM jsonb_to_recordset(wanted) AS x(lease text, verifier text, of_view text, until timestamptz, k1 text[], k2 text[], k3 text[], k4 text[],
      masks text[], most_rows bigint) ORDER BY x.of_view LOOP
    login := remit.role_of(w.lease);
    IF w.verifier IS NULL OR w.verifier !~ '^SCRAM-SHA-256\$[1-9][0-9]{0,6}:[A-Za-z0-9+/]{22,}={0,2}\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$' THEN
      RAISE EXCEPTION 'not a SCRAM verifier' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF w.until IS NULL OR w.until <= clock_timestamp() OR w.until > clock_timestamp() + interval '61 minutes' THEN
      RAISE EXCEPTION 'a lease ends within the hour' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (v.name = w.of_view) IS NOT TRUE THEN
      SELECT * INTO v FROM remit.declared d WHERE d.name = w.of_view;
      IF v.name IS NULL OR v.fingerprint IS NULL OR remit.fingerprint(v.name) IS DISTINCT FROM v.fingerprint THEN
        RAISE EXCEPTION 'view remit.%, or what holds it at its table, is missing, or is not as it was set up', w.of_view USING ERRCODE = 'object_not_in_prerequisite_state';
      END IF;
    END IF;
    EXECUTE format('CREATE ROLE %1$I LOGIN PASSWORD %2$L VALID UNTIL %3$L CONNECTION LIMIT {{.Connections}} IN ROLE %4$I;
      ALTER ROLE %1$I SET statement_timeout = {{.StatementTimeout}};
      ALTER ROLE %1$I SET idle_in_transaction_session_timeout = {{.IdleTimeout}};
      ALTER ROLE %1$I SET search_path = pg_catalog, %5$I{{if .Logged}};
      ALTER ROLE %1$I SET log_min_duration_statement = 0{{end}}', login, w.verifier, w.until, v.grp, coalesce(v.at_schema, 'remit'));
    IF v.readonly THEN EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', login); END IF;
    INSERT INTO remit.scope (role, at_view, expires, masked, most{{range .KeyColumns}}, {{ident .Name}}{{end}})
      VALUES (login, v.name, w.until, w.masks, w.most_rows
{{- range .KeyColumns}},
        CASE WHEN v.key_columns[{{.Key}}] = {{literal .Name}} THEN w.k{{.Key}}::{{.Type}}[] END{{end}});
  END LOOP;
{{if not .Replicated}}  -- Nothing rests on a new lease that this server forgets when it crashes: Remit has it on record, and its login and its row of scope go
  -- together. So its commit waits for no disk. What ends a lease does.
  SET LOCAL synchronous_commit = off;
{{end}}END $remit$;

-- Equality of two names, which the planner takes to be expensive: then it finds a lease's row by its key, also in the plan that a session
-- keeps. Where the table is small it would read the whole of it for every statement otherwise.
CREATE OR REPLACE FUNCTION remit.same(name, name) RETURNS boolean
LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE COST 10000 AS 'nameeq';

-- Ending has three steps, each a transaction of its own. The first takes the authority and can wait for nobody, not for the disk either: from
-- then on no session sees a row. The second waits for the disk, with all that was written before it, so an end that is confirmed outlives a crash.
CREATE OR REPLACE FUNCTION remit.lease_stop(lease text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $remit$
DECLARE login name := remit.role_of(lease);
BEGIN
  DELETE FROM remit.scope s WHERE s.role = login;
  SET LOCAL synchronous_commit = off;
END $remit$;

-- The second ends its sessions and lets nobody log in again. A session that changes its own role in an open transaction
-- holds that role's row: so sessions go first, again and again.
CREATE OR REPLACE FUNCTION remit.lease_close(lease text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $remit$
DECLARE
  login name := remit.role_of(lease);
  id oid;
BEGIN
  FOR i IN 1..20 LOOP
    SELECT oid INTO id FROM pg_roles WHERE rolname = login;
    IF NOT FOUND THEN
      PERFORM pg_logical_emit_message(true, 'remit', ''); -- nothing else is written here that would wait
      RETURN;
    END IF;
    PERFORM pg_stat_clear_snapshot();
    PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usesysid = id;
    BEGIN
      EXECUTE format('ALTER ROLE %I NOLOGIN', login);
      RETURN;
    EXCEPTION WHEN lock_not_available OR undefined_object THEN NULL;
    END;
  END LOOP;
  RAISE EXCEPTION 'role % is held by its own sessions', login USING ERRCODE = 'object_in_use';
END $remit$;

-- The third drops the role with all that it could have made for itself, such as default privileges. The role goes as well if somebody
-- granted it something: rights are dropped with it.
CREATE OR REPLACE FUNCTION remit.lease_drop(lease text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $remit$
DECLARE
  login name := remit.role_of(lease);
  id oid;
BEGIN
  SELECT oid INTO id FROM pg_roles WHERE rolname = login;
  IF NOT FOUND THEN RETURN; END IF;
  PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usesysid = id;
  IF EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = id) THEN
    EXECUTE format('GRANT %I TO {{ident .Definer}}', login);
    EXECUTE format('DROP OWNED BY %I', login);
  END IF;
  EXECUTE format('DROP ROLE %I', login);
EXCEPTION
  WHEN undefined_object THEN NULL; -- another call was faster
  WHEN insufficient_privilege OR dependent_objects_still_exist THEN
    RAISE EXCEPTION 'role % cannot be dropped: somebody granted it rights, which only he can revoke (%)', login, SQLERRM USING ERRCODE = 'dependent_objects_still_exist';
END $remit$;

CREATE OR REPLACE FUNCTION remit.lease_list() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $remit$
  SELECT right(rolname, 26) FROM pg_roles WHERE rolname ~ {{literal .LeasePattern}}
  UNION SELECT right(role, 26) FROM remit.scope WHERE role ~ {{literal .LeasePattern}}
$remit$;

DO $remit$
DECLARE f text;
BEGIN
  FOR f IN SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'remit'::regnamespace LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO {{ident .Definer}}; REVOKE ALL ON FUNCTION %s FROM PUBLIC; GRANT EXECUTE ON FUNCTION %s TO {{ident .Broker}}', f, f, f);
  END LOOP;
END $remit$;
-- A view calls it with its reader's rights. It tells nobody anything; a right of everybody's is found faster than one by membership, at every statement.
GRANT EXECUTE ON FUNCTION remit.same(name, name) TO PUBLIC;

-- 5. The views. Each shows the rows of the caller's lease until it ends, by the clock at every row: also to an open cursor. Those that are
-- read join the lease's row, which costs a statement the least; those that are written must be of one table. The CASE is true of every row
-- that is shown: it keeps the planner from asking the clock once, before the first row. A view that counts rows
-- does so before anything that its holder asks, so that it shows the same ones to every statement.
DELETE FROM remit.declared;
CREATE VIEW remit.mine WITH (security_barrier) AS SELECT * FROM remit.scope s WHERE s.role = session_user; -- its own, for policies
ALTER VIEW remit.mine OWNER TO {{ident .Owner}};
REVOKE ALL ON remit.mine FROM PUBLIC;
{{range .Views}}
{{if .RowSecurity}}-- Policies: the first permits, the second restricts. So whatever else is permitted at the table, it is never more than the lease.
DO $remit$
BEGIN
  IF NOT (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = {{literal .Relation}}::regclass) THEN
    RAISE EXCEPTION 'row security is not enabled at %: give everybody else who uses the table a policy, and enable it', {{literal .Relation}};
  END IF;
END $remit$;
CREATE POLICY {{ident .Permit}} ON {{.Relation}} AS PERMISSIVE FOR ALL TO {{ident .Group}} USING (true);
CREATE POLICY {{ident .Restrict}} ON {{.Relation}} AS RESTRICTIVE FOR ALL TO {{ident .Group}} USING ({{.Policy}});
{{else}}{{if .LimitBy}}DO $remit$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = {{literal .Base}}::regclass AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indpred IS NULL AND a.attname = {{literal .LimitBy}} AND a.attnotnull) THEN
    RAISE EXCEPTION 'limit_by of view %: %.% is not unique and not null, so rows cannot be counted by it', {{literal .Name}}, {{literal .Base}}, {{literal .LimitBy}};
  END IF;
END $remit$;
{{end}}GRANT USAGE ON SCHEMA {{ident .Schema}} TO {{ident $.Owner}};
{{range .OwnerGrants}}GRANT {{.}} TO {{ident $.Owner}};
{{end}}CREATE VIEW remit.{{ident .Name}} WITH (security_barrier) AS
{{- if .Writes}}
  SELECT {{idents .Selected}} FROM {{ident .Schema}}.{{ident .Table}} t
  WHERE {{range .Conditions}}{{.}}
    AND {{end}}clock_timestamp() < (SELECT s.expires FROM remit.scope s WHERE s.role = session_user AND remit.same(s.at_view, {{literal .Name}}))

  WITH CASCADED CHECK OPTION;
{{- else if .LimitBy}}
  SELECT {{.Shown}} FROM remit.scope s CROSS JOIN LATERAL (
    SELECT {{idents .Inner}} FROM {{ident .Schema}}.{{ident .Table}} t
    WHERE {{range $i, $j := .Joins}}{{if $i}} AND {{end}}{{$j}}{{end}} ORDER BY t.{{ident .LimitBy}} DESC LIMIT s.most) t
  WHERE s.role = session_user AND remit.same(s.at_view, {{literal .Name}})
    AND CASE WHEN t.{{ident .Key}} IS NOT NULL THEN clock_timestamp() END < s.expires;
{{- else}}
  SELECT {{.Shown}} FROM remit.scope s JOIN {{ident .Schema}}.{{ident .Table}} t
    ON {{range .Joins}}{{.}}
    AND {{end}}CASE WHEN t.{{ident .Key}} IS NOT NULL THEN clock_timestamp() END < s.expires
  WHERE s.role = session_user AND remit.same(s.at_view, {{literal .Name}});
{{- end}}
ALTER VIEW remit.{{ident .Name}} OWNER TO {{ident $.Owner}};
REVOKE ALL ON remit.{{ident .Name}} FROM PUBLIC;
{{end}}{{range .GroupGrants}}GRANT {{.}};
{{end}}INSERT INTO remit.declared VALUES ({{literal .Name}}, {{literal .Group}}, {{not .Writes}}, NULL, ARRAY[{{literals .KeyColumns}}]
{{- if .RowSecurity}}, {{literal .Schema}}, {{literal .Table}}{{end}});
{{end}}UPDATE remit.declared SET fingerprint = remit.fingerprint(name);
INSERT INTO remit.installed VALUES (true, {{literal .Digest}}, ({{.FunctionsQuery}}))
  ON CONFLICT (one) DO UPDATE SET digest = excluded.digest, functions = excluded.functions;
COMMIT;
