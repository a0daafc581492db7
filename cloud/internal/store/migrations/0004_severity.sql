-- Alarms and warnings are few among many and are looked for by themselves, in the trail of the service and of a device.
CREATE INDEX audit_severe ON audit (device, severity, seq) WHERE severity <> 'info';
