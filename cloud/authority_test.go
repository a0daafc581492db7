package cloud

import (
	"errors"
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestRenewals tells each device that is behind once for each rotation, and
// none is passed over because it was just arriving.
func TestRenewals(t *testing.T) {
	current := "old"
	came := map[fleet.DeviceID]string{"here": "old", "arriving": "old", "rescued": ""}
	deaf := map[fleet.DeviceID]bool{}
	var told []string
	r := renewals{
		current: func() string { return current },
		came:    func(d fleet.DeviceID) string { return came[d] },
		tell: func(d fleet.DeviceID) error {
			if deaf[d] {
				return errors.New("not connected")
			}
			told = append(told, string(d)+" "+current)
			return nil
		},
	}
	look := func(what string, want ...string) {
		t.Helper()
		told = nil
		for _, d := range []fleet.DeviceID{"arriving", "gone", "here", "rescued"} {
			if err := r.look(d); (err != nil) != deaf[d] {
				t.Errorf("%s: %s: got %v", what, d, err)
			}
		}
		if !slices.Equal(told, want) {
			t.Errorf("%s: told %q, want %q", what, told, want)
		}
	}
	look("before the rotation")
	current, deaf["arriving"] = "new", true
	look("at the rotation, while one arrives", "here new")
	deaf["arriving"] = false
	look("when it has arrived", "arriving new")
	look("again")
	came["here"] = "new"
	look("when one shows another certificate")
	current = "newer"
	look("at the next rotation", "arriving newer", "here newer")
	came["here"], came["arriving"] = "newer", ""
	look("in the end")
}
