package fleet_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestReasonsAreDocumented compares the table that operators read with the one
// that the service goes by.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/peripherals.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	for _, r := range fleet.Reasons() {
		fmt.Fprintf(&rows, "| `%s` | %s |\n", r, fleet.Advice(fleet.Light{Health: fleet.HealthFault, Reason: r}))
	}
	if !strings.Contains(string(text), "| reason | what to do |\n|---|---|\n"+rows.String()+"\n") {
		t.Errorf("the table of docs/peripherals.md should be\n%s", rows.String())
	}
}
