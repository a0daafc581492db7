package fleet

import "strings"

// Outcomes of an audit event, as on the wire.
const (
	Success = "success"
	Failure = "failure"
	Refused = "refused"
)

// remarks are kinds of the service's trail that tell of something seen, where
// nothing was tried and so nothing came of it.
var remarks = map[string]bool{
	"attest.pending": true, "attest.stale": true, "audit.chain_broken": true, "audit.chain_filled": true, "device.clock_ahead": true, "enrol.boot": true, "enrol.unclaimed": true,
	"identity.clone": true, "identity.expiring": true, "release.expiring": true, "update.truth": true,
}

// others are kinds whose outcome their name does not tell.
var others = map[string]string{
	"attest.degraded": Failure, "audit.break": Failure, "attest.quarantined": Failure, "broker.violation": Refused, "command.expired": Failure, "export.lost": Failure,
	"identity.replaced": Refused, "identity.revoked": Refused, "identity.unknown": Refused, "ownership.not-released": Failure, "release.stale": Failure,
}

// OutcomeOf says what came of what an entry of the service's own trail tells,
// where its recorder does not say otherwise.
func OutcomeOf(kind string) string {
	_, action, _ := strings.Cut(kind, ".")
	switch o, ok := others[kind]; {
	case ok:
		return o
	case remarks[kind] || strings.HasPrefix(kind, "peripheral."):
		return ""
	case strings.HasSuffix(action, "refused"):
		return Refused
	case strings.HasSuffix(action, "failed"):
		return Failure
	}
	return Success
}
