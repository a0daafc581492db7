package boot_test

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

var policy = []int{0, 4, 7, 8, 9}

// observed is the reference of a release, made of a known-good boot.
func observed(t testing.TB, release string) boot.Reference {
	t.Helper()
	f := tpmfarm.Default(release)
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		t.Fatal(err)
	}
	return boot.Observe(model, release, "uefi", policy, events)
}

// find returns an expected event by what its text holds.
func find(t testing.TB, r boot.Reference, pcr int, what string) *boot.Known {
	t.Helper()
	known := r.Chains[0].Registers[strconv.Itoa(pcr)]
	for i := range known {
		if strings.Contains(known[i].What, what) {
			return &known[i]
		}
	}
	t.Fatalf("PCR %d holds no %s: %+v", pcr, what, known)
	return nil
}

func hexDigest(m *tpmfarm.Measured) string {
	d := m.Digest()
	return hex.EncodeToString(d[:])
}

// checks is what findings say in short: check and register.
func checks(r boot.Result) string {
	var s []string
	for _, f := range r.Findings {
		s = append(s, f.Check+" "+f.PCR)
	}
	return strings.Join(s, ", ")
}

func always(d boot.Decision) func(int, string) boot.Decision {
	return func(int, string) boot.Decision { return d }
}

func TestAppraise(t *testing.T) {
	vendor := tpmfarm.Measured{Name: "rom", PCR: 4, Type: 0x80000004, Data: []byte("card reader driver")}
	cold := tpmfarm.Measured{Name: "capsule", PCR: 0, Type: 1, Data: []byte("firmware update")}
	for _, c := range []struct {
		name    string
		boot    func(f *tpmfarm.Firmware)
		refer   func(r *boot.Reference)
		decide  func(int, string) boot.Decision
		trust   string
		checks  string
		unknown int
	}{
		{name: "as the release says", trust: boot.Attested},
		{
			name:  "one event more",
			boot:  func(f *tpmfarm.Firmware) { f.Events = append(f.Events, vendor) },
			trust: boot.Quarantined, checks: "boot.unknown-event 4", unknown: 1,
		},
		{
			name:   "one event more that was approved",
			boot:   func(f *tpmfarm.Firmware) { f.Events = append(f.Events, vendor) },
			decide: always(boot.Approved), trust: boot.Attested,
		},
		{
			name:   "one event more that was rejected",
			boot:   func(f *tpmfarm.Firmware) { f.Events = append(f.Events, vendor) },
			decide: always(boot.Rejected), trust: boot.Quarantined, checks: "boot.rejected-event 4",
		},
		{
			name:  "one event more in a soft register",
			boot:  func(f *tpmfarm.Firmware) { f.Events = append(f.Events, cold) },
			refer: func(r *boot.Reference) { r.Soft = []int{0} },
			trust: boot.Degraded, checks: "boot.unknown-event 0", unknown: 1,
		},
		{
			name:   "rejected in a soft register",
			boot:   func(f *tpmfarm.Firmware) { f.Events = append(f.Events, cold) },
			refer:  func(r *boot.Reference) { r.Soft = []int{0} },
			decide: always(boot.Rejected), trust: boot.Quarantined, checks: "boot.rejected-event 0",
		},
		{
			name: "one event more in a soft register and one in a hard one",
			boot: func(f *tpmfarm.Firmware) { f.Events = append(f.Events, cold, vendor) },
			refer: func(r *boot.Reference) {
				r.Soft = []int{0}
			},
			trust: boot.Quarantined, checks: "boot.unknown-event 4, boot.unknown-event 0", unknown: 2,
		},
		{
			name:  "kernel not measured",
			boot:  func(f *tpmfarm.Firmware) { *f = f.Without("kernel") },
			trust: boot.Quarantined, checks: "boot.missing-event 9",
		},
		{
			name: "kernel not measured, all approved, all soft",
			boot: func(f *tpmfarm.Firmware) { *f = f.Without("kernel") },
			refer: func(r *boot.Reference) {
				r.Soft = r.Policy
			},
			decide: always(boot.Approved), trust: boot.Quarantined, checks: "boot.missing-event 9",
		},
		{
			name:  "another kernel",
			boot:  func(f *tpmfarm.Firmware) { f.Event("kernel").Image = []byte("evil") },
			trust: boot.Quarantined, checks: "boot.unknown-event 9", unknown: 1,
		},
		{
			name:   "another kernel that was approved",
			boot:   func(f *tpmfarm.Firmware) { f.Event("kernel").Image = []byte("hotfix") },
			decide: always(boot.Approved), trust: boot.Attested,
		},
		{
			name:  "new firmware in a soft register",
			boot:  func(f *tpmfarm.Firmware) { f.Event("firmware").Image = []byte("firmware volume 2") },
			refer: func(r *boot.Reference) { r.Soft = []int{0} },
			trust: boot.Degraded, checks: "boot.unknown-event 0", unknown: 1,
		},
		{
			name:  "Secure Boot off",
			boot:  func(f *tpmfarm.Firmware) { m := f.Event("SecureBoot"); m.Data[len(m.Data)-1] = 0 },
			trust: boot.Quarantined, checks: "boot.unknown-event 7", unknown: 1,
		},
		{
			name:  "a register without an event",
			boot:  func(f *tpmfarm.Firmware) { *f = f.Without("cmdline") },
			trust: boot.Quarantined, checks: "boot.not-covered 8",
		},
		{
			name: "a register outside the policy",
			boot: func(f *tpmfarm.Firmware) { f.Event("boot-order").Data = []byte("another") },

			trust: boot.Attested,
		},
		{
			name: "an optional event is missing",
			boot: func(f *tpmfarm.Firmware) { *f = f.Without("authority") },
			refer: func(r *boot.Reference) {
				find(t, *r, 7, "AUTHORITY").Optional = true
			},
			trust: boot.Attested,
		},
		{
			name: "an optional event is there",
			refer: func(r *boot.Reference) {
				find(t, *r, 7, "AUTHORITY").Optional = true
			},
			trust: boot.Attested,
		},
		{
			name: "in another order",
			boot: func(f *tpmfarm.Firmware) {
				k, a := f.Event("kernel"), f.Event("agent")
				*k, *a = *a, *k
			},
			trust: boot.Quarantined, checks: "boot.unknown-event 9, boot.missing-event 9", unknown: 1,
		},
		{
			name: "an event twice",
			boot: func(f *tpmfarm.Firmware) {
				f.Events = append(f.Events, *f.Event("agent"))
			},
			trust: boot.Quarantined, checks: "boot.unknown-event 9", unknown: 1,
		},
		{
			name:  "event extended behind the log",
			boot:  func(f *tpmfarm.Firmware) { f.Event("agent").Hidden = true },
			trust: boot.Quarantined, checks: "boot.log-replay 9",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := tpmfarm.Default(running), observed(t, running)
			if c.boot != nil {
				c.boot(&f)
			}
			if c.refer != nil {
				c.refer(&r)
			}
			if _, err := boot.ParseReference(r.Bytes()); err != nil {
				t.Fatal(err)
			}
			got := boot.Appraise([]boot.Reference{r}, c.decide, f.Registers(), f.Log())
			if got.Trust != c.trust || checks(got) != c.checks || len(got.Unknown) != c.unknown {
				t.Errorf("got %s, %q and %d unknown events; want %s, %q and %d", got.Trust, checks(got), len(got.Unknown), c.trust, c.checks, c.unknown)
			}
			want, chain := running, "uefi"
			if c.trust == boot.Quarantined {
				want, chain = "", ""
			}
			if got.Release != want || got.Chain != chain {
				t.Errorf("got release %q by %q, want %q by %q", got.Release, got.Chain, want, chain)
			}
			for _, f := range got.Findings {
				if len(f.Text) > 400 || f.Text == "" || f.Check != "boot.log-replay" && f.Release != running {
					t.Errorf("finding %+v", f)
				}
			}
		})
	}
}

// What was decided counts for the register it was decided for.
func TestDecisionIsForOneRegister(t *testing.T) {
	r, f := observed(t, running), tpmfarm.Default(running)
	evil := f.Event("kernel")
	evil.Image = []byte("hotfix")
	decide := func(only int) func(int, string) boot.Decision {
		return func(pcr int, digest string) boot.Decision {
			if pcr == only && digest == hexDigest(evil) {
				return boot.Approved
			}
			return boot.Open
		}
	}
	if got := boot.Appraise([]boot.Reference{r}, decide(9), f.Registers(), f.Log()); got.Trust != boot.Attested {
		t.Errorf("approved: got %+v", got)
	}
	if got := boot.Appraise([]boot.Reference{r}, decide(8), f.Registers(), f.Log()); got.Trust != boot.Quarantined {
		t.Errorf("approved for another register: got %+v", got)
	}
}

// The service asks with {running, offered}: each is a whole way to boot, and no
// mixture of two is.
func TestRunningAndOffered(t *testing.T) {
	refs := []boot.Reference{observed(t, running), observed(t, offered)}
	for _, release := range []string{running, offered} {
		f := tpmfarm.Default(release)
		if got := boot.Appraise(refs, nil, f.Registers(), f.Log()); got.Trust != boot.Attested || got.Release != release {
			t.Errorf("%s: got %+v", release, got)
		}
	}
	old := tpmfarm.Default("os/0.9.0")
	if got := boot.Appraise(refs, nil, old.Registers(), old.Log()); got.Trust != boot.Quarantined || got.Release != "" {
		t.Errorf("a release that is neither: got %+v", got)
	}
	mix := tpmfarm.Default(offered)
	mix.Event("agent").Image = tpmfarm.Default(running).Event("agent").Image
	got := boot.Appraise(refs, nil, mix.Registers(), mix.Log())
	if got.Trust != boot.Quarantined || checks(got) != "boot.unknown-event 9" {
		t.Errorf("kernel of one and agent of the other: got %+v", got)
	}
}

// What fits best explains, whatever the order.
func TestFindingsExplainAgainstTheBestFit(t *testing.T) {
	near, far := observed(t, offered), observed(t, running)
	f := tpmfarm.Default(offered)
	f.Event("cmdline").Image = []byte("init=/bin/sh")
	for _, refs := range [][]boot.Reference{{near, far}, {far, near}} {
		got := boot.Appraise(refs, nil, f.Registers(), f.Log())
		if len(got.Findings) != 1 || got.Findings[0].Release != offered || got.Findings[0].Event != hexDigest(f.Event("cmdline")) ||
			!strings.Contains(got.Findings[0].Text, "kernel_cmdline") || len(got.Unknown) != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

// A model may boot in more ways than one.
func TestChains(t *testing.T) {
	r, f := observed(t, running), tpmfarm.Default(running)
	f.Events = append(f.Events, tpmfarm.Measured{PCR: 8, Type: 13, Data: []byte("second")}) // another boot manager
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		t.Fatal(err)
	}
	r.Chains = append(r.Chains, boot.Observe(model, running, "second", policy, events).Chains...)
	if got := boot.Appraise([]boot.Reference{r}, nil, f.Registers(), f.Log()); got.Trust != boot.Attested || got.Chain != "second" {
		t.Errorf("got %+v", got)
	}
	first := tpmfarm.Default(running)
	if got := boot.Appraise([]boot.Reference{r}, nil, first.Registers(), first.Log()); got.Trust != boot.Attested || got.Chain != "uefi" {
		t.Errorf("got %+v", got)
	}
}

func TestNothingToJudgeByIsNotTrust(t *testing.T) {
	r, f := observed(t, running), tpmfarm.Default(running)
	refs := []boot.Reference{r}
	bare := boot.Reference{Version: 1, Model: model, Release: offered}
	if got := boot.Appraise(nil, always(boot.Approved), f.Registers(), f.Log()); got.Trust != boot.Quarantined || checks(got) != "boot.unjudged " {
		t.Errorf("no reference: got %+v", got)
	}
	if got := boot.Appraise(refs, always(boot.Approved), f.Registers(), nil); got.Trust != boot.Quarantined || checks(got) != "boot.no-log " {
		t.Errorf("no log: got %+v", got)
	}
	// A head alone is a log in form, and adds up to registers as after a reset.
	empty := tpmfarm.Firmware{}
	if got := boot.Appraise(refs, always(boot.Approved), empty.Registers(), empty.Log()); got.Trust != boot.Quarantined || !strings.HasPrefix(checks(got), "boot.not-covered 0, boot.not-covered 4") {
		t.Errorf("empty log: got %+v", got)
	}
	if got := boot.Appraise(refs, always(boot.Approved), f.Registers(), []byte("log")); got.Trust != boot.Quarantined || checks(got) != "boot.log-replay " {
		t.Errorf("no log in form: got %+v", got)
	}
	// PCR 8 and 9 are not quoted.
	if got := boot.Appraise(refs, always(boot.Approved), f.Registers()[:8], f.Log()); got.Trust != boot.Quarantined || checks(got) != "boot.not-covered 8, boot.not-covered 9" {
		t.Errorf("fewer registers: got %+v", got)
	}
	// A model without measurements says so in its reference; the reference of
	// another release does not open that door.
	if got := boot.Appraise([]boot.Reference{bare}, nil, f.Registers(), nil); got.Trust != boot.Attested || got.Release != offered {
		t.Errorf("a model without a log: got %+v", got)
	}
	if got := boot.Appraise([]boot.Reference{bare}, nil, f.Registers(), []byte("log")); got.Trust != boot.Quarantined {
		t.Errorf("a model without a log that sends nonsense: got %+v", got)
	}
	if got := boot.Appraise([]boot.Reference{bare, r}, nil, f.Registers(), nil); got.Trust != boot.Quarantined || checks(got) != "boot.no-log " {
		t.Errorf("log stripped: got %+v", got)
	}
}

// A device cannot drown an operator, nor the wire.
func TestFindingsAreFew(t *testing.T) {
	r, f := observed(t, running), tpmfarm.Default(running)
	for i := range 900 {
		f.Events = append(f.Events, tpmfarm.Measured{PCR: i % 10, Data: []byte(strconv.Itoa(i))})
	}
	got := boot.Appraise([]boot.Reference{r}, nil, f.Registers(), f.Log())
	if got.Trust != boot.Quarantined || len(got.Findings) != 12 || !strings.Contains(got.Findings[11].Text, "439 findings more") || len(got.Unknown) != 32 {
		t.Errorf("got %s, %d unknown events and %d findings, the last %+v", got.Trust, len(got.Unknown), len(got.Findings), got.Findings[len(got.Findings)-1])
	}
	f = tpmfarm.Default(running)
	for range 9 {
		f.Events = append(f.Events, tpmfarm.Measured{PCR: 8, Data: []byte("again")})
	}
	if got := boot.Appraise([]boot.Reference{r}, nil, f.Registers(), f.Log()); len(got.Unknown) != 1 || len(got.Findings) != 9 {
		t.Errorf("one event nine times: got %d unknown events and %d findings, want 1 and 9", len(got.Unknown), len(got.Findings))
	}
}

// A regular expression says the same as the appraisal: what is known, in
// order, with what may be missing.
func TestSequencesAreRegularExpressions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.StringMatching(`[a-c]{1,8}`)
		known, seen := letters.Draw(t, "known"), letters.Draw(t, "seen")
		var list []boot.Known
		pattern, must := "^", false
		for i, k := range known {
			optional := rapid.Bool().Draw(t, fmt.Sprintf("optional %d", i))
			must = must || !optional
			m := tpmfarm.Measured{Data: []byte(string(k))}
			list = append(list, boot.Known{Digest: hexDigest(&m), Optional: optional})
			pattern += string(k)
			if optional {
				pattern += "?"
			}
		}
		var f tpmfarm.Firmware
		for _, s := range seen {
			f.Events = append(f.Events, tpmfarm.Measured{PCR: 4, Data: []byte(string(s))})
		}
		r := boot.Reference{Version: 1, Model: model, Release: running, Policy: []int{4}, Chains: []boot.Chain{{Name: "c", Registers: map[string][]boot.Known{"4": list}}}}
		if _, err := boot.ParseReference(r.Bytes()); (err == nil) != must {
			t.Fatalf("reference: %v", err)
		}
		want := regexp.MustCompile(pattern + "$").MatchString(seen)
		got := boot.Appraise([]boot.Reference{r}, nil, f.Registers(), f.Log())
		if (got.Trust == boot.Attested) != want {
			t.Fatalf("%s against %s: got %+v", seen, pattern, got)
		}
		// What is approved may come beside what is expected, or in the place of one
		// that may not be missing.
		approved := rapid.StringMatching(`[a-c]{0,2}`).Draw(t, "approved")
		decide := func(_ int, digest string) boot.Decision {
			for _, s := range approved {
				if m := (tpmfarm.Measured{Data: []byte(string(s))}); hexDigest(&m) == digest {
					return boot.Approved
				}
			}
			return boot.Open
		}
		var fits func(k []boot.Known, s string) bool
		fits = func(k []boot.Known, s string) bool {
			if len(k) == 0 && s == "" {
				return true
			}
			if len(k) > 0 && k[0].Optional && fits(k[1:], s) {
				return true
			}
			if s == "" {
				return false
			}
			m := tpmfarm.Measured{Data: []byte(s[:1])}
			same := len(k) > 0 && k[0].Digest == hexDigest(&m)
			if same && fits(k[1:], s[1:]) {
				return true
			}
			return strings.Contains(approved, s[:1]) && (fits(k, s[1:]) || len(k) > 0 && !same && !k[0].Optional && fits(k[1:], s[1:]))
		}
		got = boot.Appraise([]boot.Reference{r}, decide, f.Registers(), f.Log())
		if (got.Trust == boot.Attested) != fits(list, seen) {
			t.Fatalf("%s against %s with %s approved: got %+v", seen, pattern, approved, got)
		}
		// In a soft register nothing but a missing event is hard.
		r.Soft = []int{4}
		got = boot.Appraise([]boot.Reference{r}, nil, f.Registers(), f.Log())
		missing := slices.ContainsFunc(got.Findings, func(f boot.Finding) bool { return f.Check == "boot.missing-event" })
		if (got.Trust == boot.Quarantined) != missing || (got.Trust == boot.Attested) != want {
			t.Fatalf("soft: got %+v", got)
		}
	})
}

func BenchmarkAppraise(b *testing.B) {
	f := tpmfarm.Default(running)
	refs := []boot.Reference{observed(b, running), observed(b, offered)}
	log, values := f.Log(), f.Registers()
	b.ReportAllocs()
	for b.Loop() {
		if got := boot.Appraise(refs, nil, values, log); got.Trust != boot.Attested {
			b.Fatalf("%+v", got)
		}
	}
}
