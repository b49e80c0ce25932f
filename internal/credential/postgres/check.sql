SELECT 'the role with which Remit logs in has more rights than the broker needs' FROM pg_roles r
  WHERE r.rolname = session_user AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
    OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid))
UNION ALL
SELECT format('everybody has %s on database %I', string_agg(lower(a.privilege_type), ', '), d.datname)
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE a.grantee = 0 AND d.datallowconn GROUP BY d.datname
UNION ALL
SELECT format('everybody may create in schema %I', n.nspname)
  FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a WHERE a.grantee = 0 AND a.privilege_type = 'CREATE'
UNION ALL
SELECT format('everybody may make large objects (%s)', p.oid::regprocedure)
  FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
  WHERE p.oid IN ('pg_catalog.lo_creat(integer)'::regprocedure, 'pg_catalog.lo_create(oid)'::regprocedure, 'pg_catalog.lo_from_bytea(oid, bytea)'::regprocedure)
    AND a.grantee = 0
UNION ALL
SELECT format('everybody may call %s with its owner''s rights (SECURITY DEFINER)', string_agg(p.oid::regprocedure::text, ', '))
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
  WHERE a.grantee = 0 AND p.prosecdef
    AND EXISTS (SELECT FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) u LEFT JOIN pg_roles g ON g.oid = u.grantee WHERE (u.grantee = 0 OR g.rolname ~ '^remit_[a-z0-9]+_v_') AND u.privilege_type = 'USAGE') HAVING count(*) > 0
UNION ALL
SELECT format('everybody may read or write %s', string_agg(DISTINCT c.oid::regclass::text, ', '))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
    LATERAL (SELECT x.grantee FROM aclexplode(c.relacl) x
      UNION ALL SELECT x.grantee FROM pg_attribute t, aclexplode(t.attacl) x WHERE t.attrelid = c.oid) a
  WHERE a.grantee = 0 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND EXISTS (SELECT FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) u LEFT JOIN pg_roles g ON g.oid = u.grantee WHERE (u.grantee = 0 OR g.rolname ~ '^remit_[a-z0-9]+_v_') AND u.privilege_type = 'USAGE') HAVING count(*) > 0
UNION ALL
SELECT 'max_prepared_transactions is not 0: a prepared transaction outlives its session and holds its locks'
  WHERE current_setting('max_prepared_transactions')::int > 0
