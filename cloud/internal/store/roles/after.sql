-- As tillward_owner, when the tables are there.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tillward TO tillward_service;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA tillward TO tillward_service;

-- What is on record stays as it is: it is read and added to.
REVOKE ALL ON tillward.audit, tillward.facet, tillward.countersign, tillward.segment, tillward.schema_version FROM tillward_service;
GRANT SELECT, INSERT ON tillward.audit, tillward.facet, tillward.countersign, tillward.segment TO tillward_service;
GRANT SELECT ON tillward.schema_version TO tillward_service;

GRANT SELECT ON tillward.device, tillward.audit, tillward.countersign, tillward.segment TO tillward_keeper;
GRANT UPDATE (device), DELETE ON tillward.audit, tillward.countersign TO tillward_keeper;
GRANT UPDATE (trail) ON tillward.segment TO tillward_keeper;
