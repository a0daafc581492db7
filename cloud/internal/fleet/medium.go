package fleet

import (
	"crypto/ed25519"
	"time"
)

// Medium is an update medium to write: releases on a stick, for devices of one
// tenant that the network does not reach.
type Medium struct {
	ID       string
	Tenant   TenantID
	By       string
	Releases []ReleaseID
	Life     time.Duration // at most 90 days
}

// Freshness is how fresh the metadata of releases is, and who keeps it so.
type Freshness struct {
	Key    ed25519.PublicKey    // of the service
	Online bool                 // the root of the releases lets it sign snapshot and timestamp
	Signed time.Time            // the timestamp; zero when nothing is published
	Ends   map[string]time.Time // the metadata of each role
}
