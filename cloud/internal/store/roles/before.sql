-- Who may do what in the database of the fleet service. Run by an administrator of the database, again after each new
-- version of the program: tillward store setup does.
--
-- tillward_owner owns the tables and signs in to nothing. tillward_service is what the service signs in as: it reads
-- and writes, and of the audit trails it can only read and add. tillward_keeper signs in to nothing either: two
-- functions work as it, and they alone touch what is in the trails.
DO $$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'tillward_owner') THEN
    CREATE ROLE tillward_owner NOLOGIN;
  END IF;
  IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'tillward_keeper') THEN
    CREATE ROLE tillward_keeper NOLOGIN;
  END IF;
  IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'tillward_service') THEN
    CREATE ROLE tillward_service LOGIN;
  END IF;
  IF NOT pg_has_role(current_user, 'tillward_owner', 'MEMBER') THEN
    EXECUTE format('GRANT tillward_owner TO %I', current_user);
  END IF;
  IF NOT pg_has_role(current_user, 'tillward_keeper', 'MEMBER') THEN
    EXECUTE format('GRANT tillward_keeper TO %I', current_user);
  END IF;
END
$$;
CREATE SCHEMA IF NOT EXISTS tillward AUTHORIZATION tillward_owner;
REVOKE ALL ON SCHEMA tillward FROM PUBLIC;
GRANT USAGE ON SCHEMA tillward TO tillward_service, tillward_keeper;
