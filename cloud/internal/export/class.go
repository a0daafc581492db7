package export

import "slices"

// What a class is in OCSF: the class there, and the activity.
type ocsfKind uint8

const (
	plain   ocsfKind = iota // Base Event 0, or Detection Finding 2004 when it is an alarm
	authn                   // Authentication 3002
	managed                 // Entity Management 3004
)

// activities of the OCSF classes authn and managed.
const (
	logon    = 1
	logoff   = 2
	create   = 1
	read     = 2
	update   = 3
	remove   = 4
	enroll   = 6
	unenroll = 7
	enable   = 8
	disable  = 9
	activate = 10
	suspend  = 12
	resume   = 13
	other    = 99
)

// class is a kind of event as a SIEM knows it. An id is given once and never
// again; what is no longer recorded keeps its row.
type class struct {
	id       int
	kind     string
	name     string
	ocsf     ocsfKind
	activity int
}

// unknown is what this version has no row for: an event of a newer agent.
var unknown = class{0, "", "Event of an unknown kind", plain, other}

// of returns the class of a kind.
func of(kind string) class {
	if i, ok := slices.BinarySearchFunc(byKind, kind, func(c class, k string) int {
		switch {
		case c.kind < k:
			return -1
		case c.kind > k:
			return 1
		}
		return 0
	}); ok {
		return byKind[i]
	}
	c := unknown
	c.kind = kind
	return c
}

var byKind = slices.SortedFunc(slices.Values(classes), func(a, b class) int {
	if a.kind < b.kind {
		return -1
	}
	return 1
})

// classes is every kind of event that the service and agents record, by id:
// 1xxx operators, 2xxx the membership of devices, 3xxx releases and rollouts,
// 4xxx commands, 5xxx what happens on a till, 6xxx trails and export.
var classes = []class{
	{1001, "access.signed-in", "Operator signed in", authn, logon},
	{1002, "access.sign-in-refused", "Sign-in refused", authn, logon},
	{1003, "access.refused", "Request of an operator refused", plain, other},
	{1004, "access.signed-out", "Operator signed out", authn, logoff},
	{1005, "access.failed", "Request of an operator failed", plain, other},
	{1101, "token.issued", "Operator token issued", managed, create},
	{1102, "token.revoked", "Operator token revoked", managed, remove},
	{1201, "site.changed", "Site changed", managed, update},
	{1202, "device.changed", "Device changed", managed, update},
	{1203, "device.waived", "Findings of a device waived", managed, update},
	{1204, "device.waiver-ended", "Waiver of a device ended", managed, update},
	{1205, "device.revoked", "Device revoked", managed, disable},
	{1206, "device.readmitted", "Device readmitted", managed, enable},
	{1207, "attest.requested", "Fresh evidence requested", managed, read},
	{1208, "firmware.decided", "Firmware event decided", managed, update},
	{1209, "authority.rotated", "Device authority signs with a new key", managed, update},
	{1210, "authority.retired", "Device authority retired", managed, disable},
	{1211, "authority.issued", "Certificate of the service issued", managed, create},
	{1301, "service.started", "Fleet service started", plain, other},
	{1302, "service.stopped", "Fleet service stopped", plain, other},
	{1303, "service.configured", "Configuration of the fleet service changed", managed, update},

	{2001, "device.claimed", "Device claimed", managed, enroll},
	{2002, "device.left", "Device left the tenant", managed, unenroll},
	{2003, "claim.refused", "Claim refused", plain, other},
	{2004, "manifest.imported", "Vendor manifest imported", managed, create},
	{2005, "manifest.refused", "Vendor manifest refused", plain, other},
	{2006, "order.claimed", "Devices of an order claimed", managed, enroll},
	{2101, "ownership.held", "Ownership voucher held", managed, update},
	{2102, "ownership.accepted", "Ownership accepted", managed, enroll},
	{2103, "ownership.offered", "Device offered to its next owner", managed, update},
	{2104, "ownership.objected", "Objection against a transfer", managed, update},
	{2105, "ownership.releasing", "Device is being given up", managed, unenroll},
	{2106, "ownership.released", "Device given up", managed, unenroll},
	{2107, "ownership.not-released", "Device not given up", plain, other},
	{2108, "ownership.refused", "Ownership voucher refused", plain, other},
	{2109, "ownership.override", "Ownership taken against another claim", plain, other},
	{2110, "ownership.grown", "Chain of ownership has grown", managed, update},
	{2111, "owner.refused", "Till refused a service that is not its owner's", plain, other},
	{2112, "owner.relinquish", "Till leaves its owner", managed, unenroll},
	{2201, "enrol.done", "Device enrolled", managed, enroll},
	{2202, "enrol.refused", "Enrolment refused", plain, other},
	{2203, "enrol.failed", "Enrolment failed", plain, other},
	{2204, "enrol.unclaimed", "Device waits to be claimed", plain, other},
	{2205, "enrol.renewed", "Device certificate renewed by the service", managed, update},
	{2206, "enrol.ak-changed", "Attestation key of a device changed", managed, update},
	{2207, "enrol.boot", "Device enrolled with a boot that is not known", plain, other},
	{2301, "identity.revoked", "Revoked certificate used", plain, other},
	{2302, "identity.replaced", "Replaced certificate used", plain, other},
	{2303, "identity.unknown", "Certificate of no member used", plain, other},
	{2304, "identity.clone", "Two devices with one identity", plain, other},
	{2305, "identity.expiring", "Device certificate ends soon", plain, other},
	{2306, "identity.renewed", "Till renewed its certificate", managed, update},
	{2307, "identity.rotated", "Till changed its attestation key", managed, update},
	{2308, "identity.refused", "Renewal of an identity refused", plain, other},
	{2309, "identity.lost", "Identity lost with the TPM's keys", plain, other},
	{2310, "identity.foreign", "State of another device found", plain, other},
	{2311, "identity.recovery", "Till uses its recovery certificate", plain, other},
	{2312, "identity.restricted", "Till is restricted", plain, other},
	{2401, "attest.attested", "Device attested", plain, other},
	{2402, "attest.degraded", "Device degraded", plain, other},
	{2403, "attest.quarantined", "Device quarantined", plain, other},
	{2404, "attest.pending", "Evidence pending", plain, other},
	{2405, "attest.stale", "Evidence stale", plain, other},
	{2501, "broker.violation", "Device broke the protocol", plain, other},
	{2502, "ingest.refused", "Message of a device refused", plain, other},
	{2503, "device.clock_ahead", "Clock of a device is ahead", plain, other},

	{3001, "release.published", "Release published", managed, create},
	{3002, "release.withdrawn", "Release withdrawn", managed, disable},
	{3003, "release.changed", "Release changed", managed, update},
	{3004, "release.metadata", "Release metadata published", managed, update},
	{3005, "release.refused", "Release refused", plain, other},
	{3006, "release.exported", "Releases exported to a medium", managed, read},
	{3007, "release.stale", "Release metadata cannot be kept fresh", plain, other},
	{3008, "release.expiring", "Release metadata ends soon", plain, other},
	{3101, "rollout.drafted", "Rollout drafted", managed, create},
	{3102, "rollout.submitted", "Rollout handed in", managed, create},
	{3103, "rollout.started", "Rollout started", managed, create},
	{3104, "rollout.changed", "Rollout changed", managed, update},
	{3105, "rollout.submit", "Draft of a rollout handed in", managed, update},
	{3106, "rollout.approve", "Rollout approved", managed, enable},
	{3107, "rollout.deny", "Rollout turned down", managed, disable},
	{3108, "rollout.start", "Rollout started by hand", managed, activate},
	{3109, "rollout.pause", "Rollout paused by hand", managed, suspend},
	{3110, "rollout.resume", "Rollout resumed", managed, resume},
	{3111, "rollout.abort", "Rollout aborted by hand", managed, disable},
	{3112, "rollout.complete", "Rollout completed by hand", managed, update},
	{3113, "rollout.retry", "Devices of a rollout tried again", managed, update},
	{3114, "rollout.hold_released", "Hold released by hand", managed, resume},
	{3121, "rollout.paused", "Rollout paused by itself", managed, suspend},
	{3122, "rollout.completed", "Rollout completed", managed, update},
	{3123, "rollout.aborted", "Rollout aborted", managed, disable},
	{3124, "rollout.superseded", "Rollout superseded", managed, disable},
	{3125, "rollout.wave", "Wave of a rollout moved", managed, update},
	{3126, "rollout.held", "Model or site held", plain, other},
	{3127, "rollout.released", "Hold of a model or site released", managed, resume},
	{3128, "rollout.ended", "Part of a device in a rollout ended by the service", plain, other},
	{3129, "rollout.retried", "Device of a rollout tried again by the service", plain, other},
	{3201, "update.offered", "Update offered to a till", plain, other},
	{3202, "update.offer-refused", "Till refused an offer", plain, other},
	{3203, "update.staged", "Update staged", plain, other},
	{3204, "update.installed", "Update installed", plain, other},
	{3205, "update.checking", "Update being checked", plain, other},
	{3206, "update.trial", "Update on trial", plain, other},
	{3207, "update.succeeded", "Update succeeded", plain, other},
	{3208, "update.already-installed", "Update installed already", plain, other},
	{3209, "update.failed", "Update failed", plain, other},
	{3210, "update.rejected", "Update rejected by the till", plain, other},
	{3211, "update.rolled-back", "Update rolled back", plain, other},
	{3212, "update.fallback", "Till fell back to what ran before", plain, other},
	{3213, "update.reboot", "Reboot for an update", plain, other},
	{3214, "update.medium", "Update medium accepted", plain, other},
	{3215, "update.medium-refused", "Update medium refused", plain, other},
	{3216, "update.metadata-old", "Release metadata on a till is old", plain, other},
	{3217, "update.metadata-expired", "Release metadata on a till has expired", plain, other},
	{3218, "update.stale-lock", "Lock of the POS application is stale", plain, other},
	{3219, "update.reconciled", "State of an update corrected", plain, other},
	{3220, "update.truth", "Device runs what was not said", plain, other},

	{4001, "command.issued", "Command issued", managed, other},
	{4002, "command.expired", "Command expired", plain, other},
	{4003, "command.start", "Command begun on a till", plain, other},
	{4004, "command.done", "Command done", plain, other},
	{4005, "command.failed", "Command failed", plain, other},
	{4006, "command.rejected", "Command rejected by the till", plain, other},
	{4007, "command.refused", "Command that does not verify", plain, other},

	{5001, "agent.start", "Agent started", plain, other},
	{5002, "agent.stop", "Agent stopped", plain, other},
	{5003, "agent.reboot", "Till reboots", plain, other},
	{5004, "agent.factory-reset", "Till goes back to factory state", plain, other},
	{5101, "link.up", "Connection to the service is up", plain, other},
	{5102, "link.down", "Connection to the service is down", plain, other},
	{5103, "link.restricted", "Connection to the service is restricted", plain, other},
	{5104, "service.found", "Till found its service", plain, other},
	{5105, "clock.behind", "Clock of a till is behind", plain, other},
	{5201, "peripheral.fault", "Peripheral out of order", plain, other},
	{5202, "peripheral.recovered", "Peripheral in order again", plain, other},
	{5203, "peripheral.unusable", "Peripheral cannot be opened", plain, other},
	{5204, "peripheral.quarantined", "Driver of a peripheral shut out", plain, other},
	{5205, "peripheral.tampered", "Box opened", plain, other},
	{5206, "peripheral.drawer_unexpected", "Drawer opened unexpectedly", plain, other},
	{5301, "spool.rebuilt", "Damaged books of a till set aside", plain, other},
	{5302, "vault.sealed", "Books of a till sealed", plain, other},
	{5303, "vault.opened", "Books of a till opened", plain, other},
	{5304, "vault.closed", "Books of a till do not open for this boot", plain, other},
	{5305, "vault.lost", "Key to the books of a till lost", plain, other},
	{5306, "spool.shed", "Till gave up telemetry for want of room", plain, other},
	{5307, "vault.data-closed", "Data of a till does not open for this boot", plain, other},
	{5308, "vault.data-lost", "Key to the data of a till lost", plain, other},

	{6001, "audit.chain_broken", "Audit trail broken", plain, other},
	{6002, "audit.chain_filled", "Gap of an audit trail filled", plain, other},
	{6003, "audit.anchor", "TPM vouches for an audit trail", plain, other},
	{6004, "audit.break", "Audit trail goes on behind a damaged file", plain, other},
	{6005, "audit.countersigned", "Service vouches for an audit trail", plain, other},
	{6006, "audit.disputed", "Till disputes what the service vouches for", plain, other},
	{6007, "audit.anchor_bad", "TPM does not vouch for an audit trail", plain, other},
	{6008, "audit.unanchored", "Till records without its TPM vouching for it", plain, other},
	{6009, "audit.archived", "Entries put away in a sealed file", plain, other},
	{6010, "audit.archive_held", "Entries not put away: a sink has not sent them", plain, other},
	{6011, "audit.archive_failed", "Entries not put away: their trail does not hold", plain, other},
	{6012, "audit.exported", "Audit trail taken away", managed, read},
	{6013, "audit.read", "Audit trail looked into", managed, read},
	{6101, "export.test", "Test event", plain, other},
	{6102, "export.tested", "Test event requested", managed, other},
	{6103, "export.lost", "Entries deleted before they were exported", plain, other},
	{6104, "export.stalled", "Export stands still", plain, other},
	{6105, "export.resumed", "Export goes on", plain, other},
}
