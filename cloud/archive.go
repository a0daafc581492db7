package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive/shelf"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

func (s *Service) wireArchive() {
	s.shelf = shelf.New(shelf.Options{
		Store: s.store, Signer: s.signer, Dir: cmp.Or(s.cfg.Audit.ArchiveDir, filepath.Join(s.cfg.DataDir, "archive")), Tenant: s.tenant,
		Before: s.cfg.Audit.Online.before, Sinks: s.export.States, Log: s.log,
	})
}

// archiveHealth says whether old entries of the trails go where they should.
func (s *Service) archiveHealth(context.Context) (state, what, todo string) {
	st := s.shelf.State()
	switch {
	case st.At.IsZero():
		return fleet.PartOK, "what is old is being looked for", ""
	case st.Err != nil:
		return fleet.PartDegraded, "old entries of the trails are not put away: " + st.Err.Error(), "see whether the folder of audit.archive_dir is there and has room; nothing was deleted"
	case st.Unsound > 0:
		return fleet.PartDegraded, fmt.Sprintf("%d trails do not hold and stay in the database", st.Unsound), "see tillward audit list --severity alarm, and verify them"
	case st.Held != "":
		return fleet.PartDegraded, "old entries stay in the database until sink " + st.Held + " has them", "see tillward export list; take a sink that is gone out of the configuration"
	}
	return fleet.PartOK, "looked at " + ago(st.At), ""
}

// AuditConfig says how long the trails stay in the database, and where they go.
type AuditConfig struct {
	Online     Keep   `toml:"online" comment:"how long entries of the audit trails stay in the database, from 12 months on (PCI DSS 10.5.1); then they are put away in sealed files, which stay for good"`
	AllowShort bool   `toml:"allow_short" comment:"online may be shorter than 12 months: then keep the sealed files of a year where they can be read at once"`
	ArchiveDir string `toml:"archive_dir" comment:"folder of the sealed files; empty: archive in the data folder"`
}

// Keep is a span by the calendar, written "12 months", "400 days" or "2 years".
type Keep struct{ Years, Months, Days int }

// before is the moment that lies the span before t.
func (k Keep) before(t time.Time) time.Time { return t.AddDate(-k.Years, -k.Months, -k.Days) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Keep) UnmarshalText(b []byte) error {
	number, unit, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 10_000 {
		return fmt.Errorf("%q is not a span such as \"12 months\", \"400 days\" or \"2 years\"", b)
	}
	switch strings.TrimSuffix(strings.TrimSpace(unit), "s") {
	case "year":
		*k = Keep{Years: n}
	case "month":
		*k = Keep{Months: n}
	case "day":
		*k = Keep{Days: n}
	default:
		return fmt.Errorf("%q is not a span such as \"12 months\", \"400 days\" or \"2 years\"", b)
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (k Keep) MarshalText() ([]byte, error) {
	switch {
	case k.Years > 0:
		return fmt.Appendf(nil, "%d years", k.Years), nil
	case k.Months > 0:
		return fmt.Appendf(nil, "%d months", k.Months), nil
	}
	return fmt.Appendf(nil, "%d days", k.Days), nil
}

func (c AuditConfig) check() error {
	if c.Online == (Keep{}) {
		return errors.New("audit.online: say how long entries stay in the database, such as \"12 months\"")
	}
	// By a year with a leap day in it: 365 days are a few hours too few.
	at := time.Date(2024, 12, 31, 0, 0, 0, 0, time.UTC)
	if !c.AllowShort && c.Online.before(at).After(at.AddDate(0, -12, 0)) {
		text, _ := c.Online.MarshalText()
		return fmt.Errorf("audit.online %q: PCI DSS 10.5.1 wants audit trails kept for 12 months, the newest three at hand; use \"12 months\" or longer, or say allow_short = true and keep the sealed files of a year where they can be read at once", text)
	}
	return nil
}
