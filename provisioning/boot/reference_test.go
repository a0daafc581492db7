package boot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/boot"
)

// golden is a reference as it was written first: what reads it must read it for
// ever.
func golden(t testing.TB) (boot.Reference, []byte) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "reference-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := boot.ParseReference(b)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

func TestGoldenReference(t *testing.T) {
	r, b := golden(t)
	if !bytes.Equal(r.Bytes(), b) {
		t.Errorf("got\n%s\nwant\n%s", r.Bytes(), b)
	}
	if r.Model != model || r.Release != running || r.Floor != 3 || !slices.Equal(r.Policy, []int{4, 9}) || len(r.Chains) != 1 || len(r.Approvals) != 1 {
		t.Errorf("got %+v", r)
	}
}

func TestReferenceHasOneForm(t *testing.T) {
	r, b := golden(t)
	same := func(b []byte) []byte { return b }
	edit := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(old)) {
				t.Fatalf("the golden reference holds no %s", old)
			}
			return bytes.Replace(b, []byte(old), []byte(new), 1)
		}
	}
	compact := func(b []byte) []byte {
		var out bytes.Buffer
		if err := json.Compact(&out, b); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	change := func(f func(r *boot.Reference)) func([]byte) []byte {
		return func(b []byte) []byte {
			r, err := boot.ParseReference(b)
			if err != nil {
				t.Fatal(err)
			}
			f(&r)
			return r.Bytes()
		}
	}
	known := func(f func(k *boot.Known)) func([]byte) []byte {
		return change(func(r *boot.Reference) { f(&r.Chains[0].Registers["4"][0]) })
	}
	approval := func(f func(a *boot.Approval)) func([]byte) []byte {
		return change(func(r *boot.Reference) { f(&r.Approvals[0]) })
	}
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		good bool
	}{
		{"as it is", same, true},
		{"no soft register", change(func(r *boot.Reference) { r.Soft = nil }), true},
		{"no policy, no chain", change(func(r *boot.Reference) { r.Policy, r.Soft, r.Chains = nil, nil, nil }), true},
		{"compact", compact, false},
		{"without the last line feed", func(b []byte) []byte { return b[:len(b)-1] }, false},
		{"something behind it", func(b []byte) []byte { return append(bytes.Clone(b), '{', '}') }, false},
		{"unknown field", edit(`"model"`, `"extra": 1, "model"`), false},
		{"field twice", edit(` "model"`, " \"floor\": 9,\n \"model\""), false},
		{"field in other letters", edit(`"model"`, `"Model"`), false},
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }, false},
		{"nothing", func([]byte) []byte { return nil }, false},
		{"null", func([]byte) []byte { return []byte("null\n") }, false},
		{"too large", func([]byte) []byte { return make([]byte, boot.MaxReference+1) }, false},
		{"next version", change(func(r *boot.Reference) { r.Version = 2 }), false},
		{"no model", change(func(r *boot.Reference) { r.Model = "" }), false},
		{"model with a line feed", change(func(r *boot.Reference) { r.Model = "POS\n500" }), false},
		{"release without a class", change(func(r *boot.Reference) { r.Release = "1.0.0" }), false},
		{"model as long as may be", change(func(r *boot.Reference) { r.Model = strings.Repeat("m", 64) }), true},
		{"model too long", change(func(r *boot.Reference) { r.Model = strings.Repeat("m", 65) }), false},
		{"release as long as may be", change(func(r *boot.Reference) { r.Release = strings.Repeat("o", 16) + "/" + strings.Repeat("1", 64) }), true},
		{"release of a long class", change(func(r *boot.Reference) { r.Release = strings.Repeat("o", 17) + "/1" }), false},
		{"release of a long version", change(func(r *boot.Reference) { r.Release = "os/" + strings.Repeat("1", 65) }), false},
		{"chain as long as may be", change(func(r *boot.Reference) { r.Chains[0].Name = strings.Repeat("c", 32) }), true},
		{"chain too long", change(func(r *boot.Reference) { r.Chains[0].Name = strings.Repeat("c", 33) }), false},
		{"release that climbs", change(func(r *boot.Reference) { r.Release = "os/../1" }), false},
		{"policy with a register that is not quoted", change(func(r *boot.Reference) { r.Policy = []int{4, 10} }), false},
		{"policy falls", change(func(r *boot.Reference) { r.Policy = []int{9, 4} }), false},
		{"policy names a register twice", change(func(r *boot.Reference) { r.Policy = []int{4, 4} }), false},
		{"policy with a register that no chain has", change(func(r *boot.Reference) { r.Policy = []int{4, 8} }), false},
		{"policy smaller than the chains", change(func(r *boot.Reference) { r.Policy, r.Soft = []int{4}, nil }), false},
		{"no policy, but chains", change(func(r *boot.Reference) { r.Policy, r.Soft = nil, nil }), false},
		{"policy without a chain", change(func(r *boot.Reference) { r.Chains = nil }), false},
		{"soft register outside the policy", change(func(r *boot.Reference) { r.Soft = []int{0} }), false},
		{"floor too high", change(func(r *boot.Reference) { r.Floor = 1<<20 + 1 }), false},
		{"two chains of one name", change(func(r *boot.Reference) { r.Chains = append(r.Chains, r.Chains[0]) }), false},
		{"chain without a name", change(func(r *boot.Reference) { r.Chains[0].Name = "" }), false},
		{"too many chains", change(func(r *boot.Reference) {
			for i := range 8 {
				c := r.Chains[0]
				c.Name = string(rune('a' + i))
				r.Chains = append(r.Chains, c)
			}
		}), false},
		{"register without an event", change(func(r *boot.Reference) { r.Chains[0].Registers["4"] = []boot.Known{} }), false},
		{"register with optional events only", known(func(k *boot.Known) { k.Optional = true }), false},
		{"too many events", change(func(r *boot.Reference) {
			r.Chains[0].Registers["4"] = slices.Repeat(r.Chains[0].Registers["4"], 257)
		}), false},
		{"short digest", known(func(k *boot.Known) { k.Digest = k.Digest[2:] }), false},
		{"digest in capitals", known(func(k *boot.Known) { k.Digest = strings.ToUpper(k.Digest) }), false},
		{"text that is not ASCII", known(func(k *boot.Known) { k.What = "\x1b[2J" }), false},
		{"text too long", known(func(k *boot.Known) { k.What = strings.Repeat("x", 129) }), false},
		{"approval without registers", approval(func(a *boot.Approval) { a.PCRs = nil }), false},
		{"approval of a register that no TPM has", approval(func(a *boot.Approval) { a.PCRs = []int{24} }), false},
		{"approval without ref", approval(func(a *boot.Approval) { a.Ref = nil }), false},
		{"approval with a short policy", approval(func(a *boot.Approval) { a.Policy = a.Policy[1:] }), false},
		{"approval without signature", approval(func(a *boot.Approval) { a.Signature = nil }), false},
		{"approval that its own release closes", approval(func(a *boot.Approval) { a.Floor = 2 }), false},
		{"approval for any floor", approval(func(a *boot.Approval) { a.Floor = 0 }), true},
		{"too many approvals", change(func(r *boot.Reference) { r.Approvals = slices.Repeat(r.Approvals, 33) }), false},
	} {
		switch got, err := boot.ParseReference(c.edit(b)); {
		case c.good && err != nil:
			t.Errorf("%s: got %v", c.name, err)
		case !c.good && (!errors.Is(err, boot.ErrReference) || got.Model != ""):
			t.Errorf("%s: got %+v and %v, want ErrReference", c.name, got, err)
		}
	}
	if r.Policy = nil; string(r.Bytes()) == string(b) || r.Policy != nil {
		t.Error("Bytes changes what it encodes")
	}
}

// A reference cannot lie in the place of another.
func TestTargetIsWhatItsPathSays(t *testing.T) {
	r, b := golden(t)
	if got, err := boot.ParseTarget("boot/POS_500/os_1.0.0.json", b); err != nil || got.Release != r.Release {
		t.Errorf("got %+v and %v", got, err)
	}
	for _, path := range []string{"boot/POS_501/os_1.0.0.json", "boot/POS_500/os_1.1.0.json", "os/1.0.0/image", ""} {
		if _, err := boot.ParseTarget(path, b); !errors.Is(err, boot.ErrReference) {
			t.Errorf("%s: got %v, want ErrReference", path, err)
		}
	}
	if _, err := boot.ParseTarget("boot/POS_500/os_1.0.0.json", b[:9]); !errors.Is(err, boot.ErrReference) {
		t.Errorf("cut off: got %v, want ErrReference", err)
	}
}

func TestTargetPath(t *testing.T) {
	for _, c := range []struct{ model, release, want string }{
		{"pos-500", "agent/1.2.3", "boot/pos-500/agent_1.2.3.json"},
		{"POS 500/b", "os/1.2.3+4", "boot/POS_500_b/os_1.2.3+4.json"},
		{"../..", "../x", "boot/.._../.._x.json"},
	} {
		if got := boot.TargetPath(c.model, c.release); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
