package cloud

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// TestOwner asks who owns an applicant, by vendor list, by certificate and by
// what it was before.
func TestOwner(t *testing.T) {
	st, err := store.Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for tenant, ek := range map[fleet.TenantID]string{"main": "listed", "other": "theirs"} {
		if _, err := st.ImportEKs(t.Context(), tenant, []fleet.Listing{{EKHash: ek}}, fleet.AuditEvent{Kind: "ek.imported"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []fleet.Device{{ID: "strong", Tenant: "main", Tier: fleet.TierA, EKHash: "strong"}, {ID: "moved", Tenant: "other", Tier: fleet.TierA, EKHash: "moved"}} {
		d.EnrolledAt = time.Now()
		if err := st.Enrol(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name      string
		device    string
		ek        string
		tier      identity.Tier
		autoClaim bool
		tenant    string
		want      identity.Tier
		err       error
	}{
		{"listed", "d1", "listed", "", false, "main", identity.TierB, nil},
		{"listed with a certificate", "d1", "listed", identity.TierA, false, "main", identity.TierA, nil},
		{"on another tenant's list", "d1", "theirs", "", true, "other", identity.TierB, nil},
		{"unknown", "d1", "unknown", "", true, "", "", enrol.ErrRefused},
		{"a certificate, not claimed", "d1", "unknown", identity.TierA, false, "", "", enrol.ErrUnclaimed},
		{"a certificate, claimed by itself", "d1", "unknown", identity.TierC, true, "main", identity.TierC, nil},
		{"back with the same tier", "strong", "strong", identity.TierA, true, "main", identity.TierA, nil},
		{"back with a lower tier", "strong", "strong", identity.TierC, true, "", "", enrol.ErrRefused},
		{"of another tenant", "moved", "moved", identity.TierA, true, "", "", enrol.ErrRefused},
	} {
		d := &directory{&Service{store: st, cfg: Config{Tenant: "main", Enrol: EnrolConfig{AutoClaim: c.autoClaim}}}}
		tenant, tier, err := d.Owner(t.Context(), enrol.Applicant{Device: c.device, EKHash: c.ek, Tier: c.tier})
		if tenant != c.tenant || tier != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %q, %v; want %q, %q, %v", c.name, tenant, tier, err, c.tenant, c.want, c.err)
		}
	}
}
