package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// mirror serves a timestamp of seven days that is signed once a day, unless it
// is frozen or gone.
type mirror struct {
	frozen, gone    bool
	signed, expires time.Time
	asked           int
}

func (m *mirror) Freshness() (signed, expires time.Time) { return m.signed, m.expires }

func (m *mirror) Refresh(context.Context) error {
	m.asked++
	switch {
	case m.gone:
		return errors.New("no route")
	case !m.frozen || m.signed.IsZero():
		m.signed = time.Now().Truncate(24 * time.Hour)
		m.expires = m.signed.Add(7 * 24 * time.Hour)
	}
	return nil
}

// A box that nobody offers anything stays fresh without an alarm, and asks once
// a day; one that is kept from what is new says so, once at half of the time and
// once at its end.
func TestFreshnessIsWatched(t *testing.T) {
	for name, tt := range map[string]struct {
		m     mirror
		want  []string
		asked [2]int // at least, at most
	}{
		"fresh":           {mirror{}, nil, [2]int{18, 22}},
		"frozen":          {mirror{frozen: true}, []string{"update.metadata-old", "update.metadata-expired"}, [2]int{300, 480}},
		"offline":         {mirror{gone: true, signed: time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC), expires: time.Date(2000, 1, 7, 0, 0, 0, 0, time.UTC)}, []string{"update.metadata-old", "update.metadata-expired"}, [2]int{300, 480}},
		"nothing to have": {mirror{gone: true}, nil, [2]int{300, 480}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []string
				ctx, cancel := context.WithTimeout(t.Context(), 20*24*time.Hour)
				defer cancel()
				f := freshness{
					releases: &tt.m, now: time.Now, log: slog.New(slog.DiscardHandler),
					record: func(_ context.Context, kind, severity, _ string, _ map[string]string) {
						if severity == "alarm" {
							told = append(told, kind)
						}
					},
				}
				if err := f.watch(ctx); err != nil {
					t.Error(err)
				}
				if !slices.Equal(told, tt.want) {
					t.Errorf("told %v, want %v", told, tt.want)
				}
				if tt.m.asked < tt.asked[0] || tt.m.asked > tt.asked[1] {
					t.Errorf("asked %d times, want %v", tt.m.asked, tt.asked)
				}
			})
		})
	}
}
