-- As an administrator again: two functions that work as tillward_keeper, and that nobody but the service calls.
GRANT CREATE ON SCHEMA tillward TO tillward_keeper;
SET LOCAL ROLE tillward_keeper;

-- The past of a device that left its owner gets a name of its own: entries and hashes stay.
CREATE OR REPLACE FUNCTION tillward.audit_leave(gone text, former text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = tillward, pg_temp AS $$
BEGIN
  IF gone = '' OR NOT EXISTS (SELECT 1 FROM device WHERE id = former AND former_of = gone) OR EXISTS (SELECT 1 FROM audit WHERE device = former) THEN
    RAISE EXCEPTION 'the trail of % does not become that of %', gone, former USING ERRCODE = 'insufficient_privilege';
  END IF;
  UPDATE audit SET device = former WHERE device = gone;
  UPDATE countersign SET device = former WHERE device = gone;
  UPDATE segment SET trail = former WHERE trail = gone;
END
$$;

-- Entries go when a sealed segment holds them, and the newest of all stays.
CREATE OR REPLACE FUNCTION tillward.audit_drop(gone text, up_to bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = tillward, pg_temp AS $$
DECLARE
  dropped bigint;
BEGIN
  DELETE FROM audit a WHERE a.device = gone AND a.seq <= up_to AND a.n < (SELECT MAX(n) FROM audit)
    AND EXISTS (SELECT 1 FROM segment s WHERE s.trail = gone AND a.seq BETWEEN s.first AND s.last);
  GET DIAGNOSTICS dropped = ROW_COUNT;
  DELETE FROM countersign c WHERE c.device = gone AND c.seq <= up_to
    AND EXISTS (SELECT 1 FROM segment s WHERE s.trail = gone AND c.seq BETWEEN s.first AND s.last);
  RETURN dropped;
END
$$;

REVOKE ALL ON FUNCTION tillward.audit_leave(text, text), tillward.audit_drop(text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tillward.audit_leave(text, text), tillward.audit_drop(text, bigint) TO tillward_service;
RESET ROLE;
REVOKE CREATE ON SCHEMA tillward FROM tillward_keeper;
