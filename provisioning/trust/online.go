package trust

import (
	"crypto"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Online reports whether the newest root in the folder lets a key sign snapshot
// and timestamp alone: whoever holds it keeps the repository fresh, and can do
// nothing else with it.
func (r *Repository) Online(pub crypto.PublicKey) (bool, error) {
	file, err := r.latest(RoleRoot)
	if err == nil && file == "" {
		err = fmt.Errorf("%s is not a release repository: it has no root metadata", r.Dir)
	}
	if err != nil {
		return false, err
	}
	root, err := metadata.Root().FromFile(file)
	if err != nil {
		return false, fmt.Errorf("read root: %w", err)
	}
	id, _, err := tufKey(pub)
	if err != nil {
		return false, err
	}
	for _, role := range []string{RoleSnapshot, RoleTimestamp} {
		if of := root.Signed.Roles[role]; of == nil || of.Threshold != 1 || !slices.Contains(of.KeyIDs, id) {
			return false, nil
		}
	}
	return true, nil
}

// Freshness says when the timestamp in the folder was signed and when it
// expires; zero when there is none.
func (r *Repository) Freshness() (signed, expires time.Time) {
	return freshness(r.metadata("timestamp.json"))
}

// Expiries says when the newest metadata of each role ends, be it good or not.
func (r *Repository) Expiries() (map[string]time.Time, error) {
	b, err := r.book()
	if err != nil {
		return nil, err
	}
	ends := map[string]time.Time{RoleRoot: b.root.Signed.Expires}
	for role, m := range b.roles {
		ends[role] = m.Signed.Expires
	}
	stamp, err := metadata.Timestamp().FromFile(r.metadata("timestamp.json"))
	if err != nil {
		return nil, fmt.Errorf("read timestamp: %w", err)
	}
	ends[RoleTimestamp] = stamp.Signed.Expires
	if m := stamp.Signed.Meta["snapshot.json"]; m != nil {
		snapshot, err := metadata.Snapshot().FromFile(r.metadata(MetadataFile(RoleSnapshot, m.Version)))
		if err != nil {
			return nil, fmt.Errorf("read snapshot: %w", err)
		}
		ends[RoleSnapshot] = snapshot.Signed.Expires
	}
	return ends, nil
}

// Fields of our timestamps beside those of the specification, which keeps what
// it does not know and has it signed [TUF 1.0.31, 4.2].
const (
	signedAt  = "x-tillward-signed" // when
	forMedium = "x-tillward-medium" // it lies on an update medium of that name and lives longer: no mirror may freeze a device with it
)

// freshness reads a timestamp that was verified when it was put there.
func freshness(file string) (signed, expires time.Time) {
	b, err := readBounded(os.Open, file, maxTimestamp)
	if err != nil {
		return signed, expires
	}
	m, err := metadata.Timestamp().FromBytes(b)
	if err != nil {
		return signed, expires
	}
	if s, ok := m.Signed.UnrecognizedFields[signedAt].(string); ok {
		if signed, err = time.Parse(time.RFC3339, s); err == nil {
			return signed, m.Signed.Expires
		}
	}
	// Signed by other tools: it came at the latest when it was written.
	if fi, err := os.Stat(file); err == nil {
		signed = fi.ModTime()
	}
	return signed, m.Signed.Expires
}
