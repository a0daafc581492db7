package label_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rsc.io/qr"

	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/provisioning/owner/label"
)

func labels() []label.Label {
	var out []label.Label
	for i := range 3 {
		out = append(out, label.Label{
			Vendor: "Vend & <Sons>", Model: "vend-1", Serial: fmt.Sprintf("S%d", i), Claim: owner.NewClaim(strings.Repeat("a", 23) + string('b'+rune(i))),
		})
	}
	return out
}

// TestSheetShowsEachClaim reads the drawings back, dot by dot.
func TestSheetShowsEachClaim(t *testing.T) {
	var b strings.Builder
	all := labels()
	if err := label.Sheet(&b, "Batch <7>", slices.Values(all)); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if strings.Contains(page, "<Sons>") || strings.Contains(page, "<7>") || !strings.Contains(page, "Vend &amp; &lt;Sons&gt;") {
		t.Error("names are not escaped")
	}
	paths := regexp.MustCompile(`viewBox="0 0 (\d+) \d+"[^>]*><path d="([^"]*)"/>`).FindAllStringSubmatch(page, -1)
	if len(paths) != len(all) {
		t.Fatalf("%d drawings, want %d", len(paths), len(all))
	}
	for i, l := range all {
		if !strings.Contains(page, "S/N <b>"+l.Serial+"</b>") {
			t.Errorf("serial %s is not on the page", l.Serial)
		}
		text := strings.ReplaceAll(regexp.MustCompile(`<code>(.*?)</code>`).FindAllStringSubmatch(page, -1)[i][1], " ", "")
		if text != l.Claim.Code {
			t.Errorf("label %d says %s, want %s", i, text, l.Claim.Code)
		}
		want, err := qr.Encode(l.Claim.URI(), qr.M)
		if err != nil {
			t.Fatal(err)
		}
		black := map[[2]int]bool{}
		for run := range strings.SplitSeq(strings.TrimSuffix(paths[i][2], "z"), "z") {
			var x, y, n, back int
			if _, err := fmt.Sscanf(run, "M%d %dh%dv1h-%d", &x, &y, &n, &back); err != nil || n != back {
				t.Fatalf("run %q: %v", run, err)
			}
			for d := range n {
				black[[2]int{x + d, y}] = true
			}
		}
		if got := paths[i][1]; got != fmt.Sprint(want.Size+8) {
			t.Fatalf("size %s, want %d and four of white on each side", got, want.Size)
		}
		for y := range want.Size + 8 {
			for x := range want.Size + 8 {
				if black[[2]int{x, y}] != want.Black(x-4, y-4) {
					t.Fatalf("label %d: dot %d,%d is wrong", i, x, y)
				}
			}
		}
	}
}

type full struct{}

var errFull = errors.New("disk is full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestSheetTellsOfAFullDisk(t *testing.T) {
	if err := label.Sheet(full{}, "x", slices.Values(labels())); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
}
