package ingest_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/postgres"
)

var (
	noon  = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	quiet = slog.New(slog.DiscardHandler)
)

// site is an Ingest over the real store with two devices.
type site struct {
	t testing.TB
	s *store.Store
	i *ingest.Ingest

	stored chan fleet.Outcome
	forks  chan string

	mu     sync.Mutex
	groups []int // sizes of the groups committed
	fail   error // what the next commits return
}

// Commit counts and fails on demand in front of the store.
func (x *site) Commit(ctx context.Context, in []fleet.Intake) ([]fleet.Outcome, error) {
	x.mu.Lock()
	x.groups = append(x.groups, len(in))
	err := x.fail
	x.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return x.s.Commit(ctx, in)
}

func (x *site) AuditHead(ctx context.Context, id fleet.DeviceID) (uint64, [32]byte, error) {
	return x.s.AuditHead(ctx, id)
}

func start(t testing.TB) *site {
	t.Helper()
	s, err := store.Open(context.Background(), postgres.Place(t), quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []fleet.DeviceID{"a", "b"} {
		if err := s.Enrol(context.Background(), fleet.Device{ID: id, Tenant: "main", Tier: fleet.TierC, EKHash: "ek-" + string(id), EnrolledAt: noon}); err != nil {
			t.Fatal(err)
		}
	}
	x := &site{t: t, s: s, stored: make(chan fleet.Outcome, 4096), forks: make(chan string, 64)}
	x.i = ingest.New(ingest.Options{
		Store: x, Log: quiet, Stored: func(_ fleet.Intake, out fleet.Outcome) { x.stored <- out },
		Forked: func(id fleet.DeviceID, what string) { x.forks <- string(id) + ": " + what },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// send submits a payload of device a and waits for its acknowledgement.
func (x *site) send(c wire.Channel, payload []byte) error {
	x.t.Helper()
	return x.sendAt(noon, "a", c, payload)
}

func (x *site) sendAt(when time.Time, id fleet.DeviceID, c wire.Channel, payload []byte) error {
	x.t.Helper()
	ack := make(chan error, 1)
	if !x.i.Submit(ingest.Message{Device: id, Tenant: "main", Channel: c, Payload: payload, At: when, Ack: func(err error) { ack <- err }}) {
		x.t.Fatal("no room")
	}
	return <-ack
}

func (x *site) ok(c wire.Channel, m wire.Message) {
	x.t.Helper()
	if err := x.send(c, encode(x.t, m)); err != nil {
		x.t.Fatalf("%s: %v", c, err)
	}
}

// kinds are those of the service's trail.
func (x *site) kinds() []string {
	x.t.Helper()
	evs, _, err := x.s.AuditTrail(x.t.Context(), "main", "", false, fleet.Page{Limit: 1000})
	if err != nil {
		x.t.Fatal(err)
	}
	var out []string
	for _, ev := range evs {
		if ev.Actor != "ingest" || ev.Subject == "" {
			x.t.Errorf("entry %+v without actor or subject", ev)
		}
		out = append(out, ev.Kind+" "+ev.Subject)
	}
	return out
}

func (x *site) device() fleet.Device {
	x.t.Helper()
	d, err := x.s.DeviceByID(x.t.Context(), "a")
	if err != nil {
		x.t.Fatal(err)
	}
	return d
}

func encode(t testing.TB, m wire.Message) []byte {
	t.Helper()
	b, err := wire.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func head(seq uint64) wire.Head {
	return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: seq, Sent: noon.UnixMilli()}
}

func telemetry(seq uint64, n int) *wire.TelemetryBatch {
	m := &wire.TelemetryBatch{Head: head(seq)}
	for i := range n {
		m.Samples = append(m.Samples, wire.Sample{At: noon.UnixMilli(), Peripheral: "printer", Name: "temp", Value: float64(i)})
	}
	return m
}

// chain makes n entries behind prev.
func chain(t testing.TB, first uint64, prev [32]byte, n int) (out []wire.AuditEntry, last [32]byte) {
	t.Helper()
	for i := range uint64(n) {
		e, err := wire.SealAudit(wire.AuditRecord{Seq: first + i, At: noon.UnixMilli(), Boot: wire.Boot{1}, Kind: "link.up", Severity: "info", Prev: prev})
		if err != nil {
			t.Fatal(err)
		}
		out, prev = append(out, e), e.Hash
	}
	return out, prev
}

func TestEachChannel(t *testing.T) {
	x := start(t)
	ctx := t.Context()
	c, err := x.s.AddCommand(ctx, fleet.Command{ID: "c1", Device: "a", Tenant: "main", Verb: "identify", NotAfter: noon.Add(time.Hour)}, fleet.AuditEvent{Kind: "command.add", Actor: "ingest", Subject: "a"})
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := chain(t, 1, [32]byte{}, 3)
	x.ok(wire.Telemetry, telemetry(1, 4))
	x.ok(wire.Telemetry, telemetry(1, 4)) // again, as after a lost PUBACK
	x.ok(wire.Event, &wire.EventBatch{Head: head(2), Events: []wire.PeripheralEvent{{At: noon.UnixMilli(), Peripheral: "printer", Category: "POSPrinter", Code: "COVER_OPEN", From: "No", To: "Yes"}}})
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(3), Entries: entries})
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(3), Entries: entries})
	x.ok(wire.State, &wire.StateReport{Head: head(4), AgentVersion: "1.2.3", Slot: "b"})
	x.ok(wire.Result, &wire.ResultReport{Head: head(5), Kind: wire.OrderCommand, ID: string(c.ID), State: "SUCCEEDED", Output: []byte("ok")})
	x.ok(wire.Result, &wire.ResultReport{Head: head(6), Kind: wire.OrderOffer, ID: "x-unknown", State: "DOWNLOADING"})

	d := x.device()
	if d.Samples != 4 || d.AuditHead != 3 || d.AuditBroken || d.AgentVersion != "1.2.3" || d.Slot != "b" {
		t.Errorf("device: got %+v", d)
	}
	if evs, _, err := x.s.Events(ctx, "main", "a", fleet.Page{}); err != nil || len(evs) != 1 || evs[0].To != "Yes" || evs[0].Seq != 2 {
		t.Errorf("events: got %+v, %v", evs, err)
	}
	if got, err := x.s.Command(ctx, "main", "c1"); err != nil || got.State != fleet.CommandSucceeded || string(got.Output) != "ok" {
		t.Errorf("command: got %+v, %v", got, err)
	}
	if rep, err := x.s.VerifyAudit(ctx, "main", "a"); err != nil || !rep.OK || rep.Entries != 3 {
		t.Errorf("trail: got %+v, %v", rep, err)
	}
	if got := x.kinds(); !slices.Equal(got, []string{"command.add a"}) {
		t.Errorf("notes: got %v, want none", got)
	}
	duplicates, ended := 0, 0
	for range 8 {
		out := <-x.stored
		duplicates += out.Duplicates
		if out.Command != nil {
			ended++
		}
	}
	if duplicates != 7 || ended != 1 {
		t.Errorf("outcomes: got %d duplicates and %d commands ended, want 7 and 1", duplicates, ended)
	}
}

// TestRefused: what cannot be read is acknowledged, stored nowhere and noted once a minute for each device.
func TestRefused(t *testing.T) {
	x := start(t)
	entries, _ := chain(t, 1, [32]byte{}, 1)
	for c, payload := range map[wire.Channel][]byte{
		wire.Telemetry:   []byte("no CBOR"),
		wire.Event:       encode(t, telemetry(1, 1))[:9],
		wire.State:       nil,
		wire.Audit:       encode(t, &wire.AuditBatch{Head: head(1), Entries: entries})[:40],
		wire.Result:      encode(t, &wire.ResultReport{Head: head(1), Kind: wire.OrderCommand, ID: "c", State: "WELL"}),
		wire.Evidence:    []byte("goes elsewhere"),
		wire.DownCommand: []byte("wrong way"),
	} {
		if err := x.send(c, payload); err != nil {
			t.Errorf("%s: got %v, want it acknowledged", c, err)
		}
	}
	if err := x.send(wire.Result, encode(t, &wire.ResultReport{Head: head(1), Kind: wire.OrderOffer, ID: "x", State: "WELL"})); err != nil {
		t.Errorf("unknown state: got %v, want it acknowledged", err)
	}
	if got := x.kinds(); !slices.Equal(got, []string{"ingest.refused a"}) {
		t.Errorf("notes: got %v, want one", got)
	}
	for when, id := range map[time.Duration]fleet.DeviceID{time.Second: "b", 2 * time.Minute: "a"} {
		if err := x.sendAt(noon.Add(when), id, wire.Telemetry, []byte("no CBOR")); err != nil {
			t.Error(err)
		}
	}
	if got := x.kinds(); len(got) != 3 {
		t.Errorf("notes: got %v, want one more of each device", got)
	}
	if d := x.device(); d.Samples != 0 || d.AuditHead != 0 || d.State != nil || d.AuditBroken {
		t.Errorf("device: got %+v, want nothing stored", d)
	}
}

// TestRefusedTogether: many bad messages in one group make one note.
func TestRefusedTogether(t *testing.T) {
	x := start(t)
	var wg sync.WaitGroup
	for range 200 {
		wg.Add(1)
		x.i.Submit(ingest.Message{Device: "a", Tenant: "main", Channel: wire.State, Payload: []byte("x"), At: noon, Ack: func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		}})
	}
	wg.Wait()
	if got := x.kinds(); len(got) != 1 {
		t.Errorf("notes: got %d, want 1", len(got))
	}
}

// TestChain breaks the chain in each way: what came is stored, the device flagged, an alarm raised.
func TestChain(t *testing.T) {
	good, hash := chain(t, 1, [32]byte{}, 3)
	next, nextHash := chain(t, 4, hash, 3)
	foreign, _ := chain(t, 4, [32]byte{9}, 1)
	forged, _ := chain(t, 3, good[1].Hash, 1)
	same, err := wire.SealAudit(wire.AuditRecord{Seq: 3, At: 1, Boot: wire.Boot{1}, Kind: "other", Severity: "info", Prev: good[1].Hash})
	if err != nil {
		t.Fatal(err)
	}
	torn := next[0]
	torn.Body = slices.Clone(torn.Body)
	torn.Body[len(torn.Body)-1] ^= 1
	headless, _ := chain(t, 7, nextHash, 1)
	for name, tt := range map[string]struct {
		entries []wire.AuditEntry
		stored  uint64 // head afterwards
		broken  bool
	}{
		"next":                        {next, 6, false},
		"overlapping":                 {append(slices.Clone(good[1:]), next...), 6, false},
		"the same again":              {forged, 3, false},
		"a gap":                       {next[1:], 6, true},
		"a long gap":                  {headless, 7, true},
		"does not follow":             {foreign, 4, true},
		"another entry for a number":  {[]wire.AuditEntry{same}, 3, true},
		"an entry that is not intact": {[]wire.AuditEntry{torn}, 3, true},
		"one of them not intact":      {[]wire.AuditEntry{torn, next[1], next[2]}, 6, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t)
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: good})
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: tt.entries})
			d, kinds := x.device(), x.kinds()
			if d.AuditHead != tt.stored || d.AuditBroken != tt.broken {
				t.Errorf("got head %d, broken %v; want %d, %v", d.AuditHead, d.AuditBroken, tt.stored, tt.broken)
			}
			if alarm := slices.Equal(kinds, []string{"audit.chain_broken a"}); alarm != tt.broken || (!tt.broken && len(kinds) != 0) {
				t.Errorf("got notes %v", kinds)
			}
		})
	}
	t.Run("a gap that is filled", func(t *testing.T) {
		x := start(t)
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: good})
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: next[1:]})
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(3), Entries: next[:1]})
		if d, kinds := x.device(), x.kinds(); d.AuditBroken || d.AuditHead != 6 || !slices.Equal(kinds, []string{"audit.chain_broken a", "audit.chain_filled a"}) {
			t.Errorf("got head %d, broken %v, notes %v", d.AuditHead, d.AuditBroken, kinds)
		}
	})
	t.Run("gaps that are opened and filled all day", func(t *testing.T) {
		x := start(t)
		all, _ := chain(t, 1, [32]byte{}, 60)
		n := uint64(0)
		for round, want := range []int{1, 2} {
			for i := 30 * round; i < 30*round+30; i += 2 {
				for _, e := range []wire.AuditEntry{all[i+1], all[i]} {
					n++
					if err := x.sendAt(noon.Add(time.Duration(round)*time.Hour), "a", wire.Audit, encode(t, &wire.AuditBatch{Head: head(n), Entries: []wire.AuditEntry{e}})); err != nil {
						t.Fatal(err)
					}
				}
			}
			if d, kinds := x.device(), x.kinds(); d.AuditBroken || len(kinds) != 2*want || kinds[2*want-2] != "audit.chain_broken a" || kinds[2*want-1] != "audit.chain_filled a" {
				t.Errorf("broken %v, notes %v", d.AuditBroken, kinds)
			}
		}
	})
	t.Run("does not begin at 1", func(t *testing.T) {
		x := start(t)
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: next})
		if d := x.device(); !d.AuditBroken || d.AuditHead != 6 {
			t.Errorf("got head %d, broken %v", d.AuditHead, d.AuditBroken)
		}
	})
}

// TestForget lets a device go and come back: its new trail begins at 1 and is whole.
func TestForget(t *testing.T) {
	for forget, broken := range map[bool]bool{true: false, false: true} {
		x := start(t)
		before, _ := chain(t, 1, [32]byte{}, 3)
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: before})
		d := x.device()
		if err := x.s.PutOwnership(t.Context(), fleet.Ownership{Device: "a", Voucher: []byte("v"), Entries: 1, State: fleet.Released}, fleet.AuditEvent{Kind: "test", Severity: "info", Actor: "ingest", Subject: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := x.s.Reset(t.Context(), "a", fleet.AuditEvent{Kind: "test", Severity: "info", Actor: "ingest", Subject: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := x.s.Enrol(t.Context(), fleet.Device{ID: "a", Tenant: "main", Tier: fleet.TierC, EKHash: d.EKHash, EnrolledAt: noon}); err != nil {
			t.Fatal(err)
		}
		if forget {
			x.i.Forget("a")
		}
		var prev [32]byte
		for seq := range uint64(4) { // one longer than what is remembered
			e, err := wire.SealAudit(wire.AuditRecord{Seq: seq + 1, At: 7, Boot: wire.Boot{2}, Kind: "agent.start", Severity: "info", Prev: prev})
			if err != nil {
				t.Fatal(err)
			}
			h := head(seq + 1)
			h.Boot, prev = wire.Boot{2}, e.Hash
			x.ok(wire.Audit, &wire.AuditBatch{Head: h, Entries: []wire.AuditEntry{e}})
		}
		if d := x.device(); d.AuditBroken != broken || d.AuditHead != 4 {
			t.Errorf("forgotten %v: got head %d, broken %v", forget, d.AuditHead, d.AuditBroken)
		}
	}
}

// TestFork lets a device's disk be copied: the original and the copy both go on from the same entry, and whichever
// comes second is told apart; a gap, or the same entries again, is no fork.
func TestFork(t *testing.T) {
	common, hash := chain(t, 1, [32]byte{}, 2)
	own, ownHash := chain(t, 3, hash, 4)
	more, _ := chain(t, 7, ownHash, 2)
	copied := func(prev [32]byte, seqs ...uint64) (out []wire.AuditEntry) {
		for _, seq := range seqs {
			e, err := wire.SealAudit(wire.AuditRecord{Seq: seq, At: 1, Boot: wire.Boot{2}, Kind: "agent.start", Severity: "info", Prev: prev})
			if err != nil {
				t.Fatal(err)
			}
			out, prev = append(out, e), e.Hash
		}
		return out
	}
	for name, tt := range map[string]struct {
		then []wire.AuditEntry
		says string
	}{
		"goes on":              {more, ""},
		"comes again":          {own, ""},
		"comes again, longer":  {append(slices.Clone(own), more...), ""},
		"a gap":                {more[1:], ""},
		"copy, behind":         {copied(hash, 3, 4), "entry 4 came a second time with other content"},
		"copy, one behind":     {copied(hash, 3), "entry 3 came a second time with other content"},
		"copy, as far":         {copied(hash, 3, 4, 5, 6), "entry 6 came a second time with other content"},
		"copy, further":        {copied(hash, 3, 4, 5, 6, 7), "a second time"},
		"copy, the newest one": {copied([32]byte{7}, 7), "entry 7 does not follow entry 6"},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t)
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: append(slices.Clone(common), own...)})
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: tt.then})
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(3), Entries: tt.then}) // within the minute: told once
			x.ok(wire.Telemetry, telemetry(4, 1))
			for range 4 {
				<-x.stored
			}
			var got []string
			for len(x.forks) > 0 {
				got = append(got, <-x.forks)
			}
			if tt.says == "" && len(got) != 0 || tt.says != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "a: ") || !strings.Contains(got[0], tt.says)) {
				t.Errorf("got %q, want %q", got, tt.says)
			}
			if d := x.device(); tt.says != "" && !d.AuditBroken {
				t.Error("told, and not on file")
			}
		})
	}
}

// TestAgainAfterItWasPutAway: a device that begins its trail anew is told of, too, when the old one lies in sealed files.
func TestAgainAfterItWasPutAway(t *testing.T) {
	x := start(t)
	old, hash := chain(t, 1, [32]byte{}, 4)
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: old})
	g := fleet.Segment{Trail: "a", First: 1, Last: 4, Hash: hash, Entries: 4, File: "x"}
	if err := x.s.AddSegment(t.Context(), "main", g, fleet.AuditEvent{Kind: "audit.archived"}); err != nil {
		t.Fatal(err)
	}
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: old[3:]})
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(3), Entries: old[:1]})
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(4), Entries: old[1:2]})
	x.ok(wire.Telemetry, telemetry(5, 1))
	for range 5 {
		<-x.stored
	}
	if got := <-x.forks; len(x.forks) != 0 || !strings.HasPrefix(got, "a: entry 1 came a second time, long after") {
		t.Errorf("got %q, and %d more", got, len(x.forks))
	}
}

// TestFailedCommit: nothing is acknowledged, and the chain is judged by what is stored, not by what was tried.
func TestFailedCommit(t *testing.T) {
	x := start(t)
	entries, hash := chain(t, 1, [32]byte{}, 2)
	next, _ := chain(t, 3, hash, 1)
	full := errors.New("disk full")
	x.mu.Lock()
	x.fail = full
	x.mu.Unlock()
	if err := x.send(wire.Audit, encode(t, &wire.AuditBatch{Head: head(1), Entries: entries})); !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
	if err := x.send(wire.State, []byte("bad, and not acknowledged either")); !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
	x.mu.Lock()
	x.fail = nil
	x.mu.Unlock()
	for i, e := range [][]wire.AuditEntry{entries, next} {
		x.ok(wire.Audit, &wire.AuditBatch{Head: head(uint64(i + 1)), Entries: e})
	}
	if d := x.device(); d.AuditHead != 3 || d.AuditBroken || len(x.kinds()) != 0 {
		t.Errorf("got head %d, broken %v, notes %v", d.AuditHead, d.AuditBroken, x.kinds())
	}
	if err := x.send(wire.State, []byte("bad")); err != nil || len(x.kinds()) != 1 {
		t.Errorf("refusal after the failure: got %v, notes %v, want one", err, x.kinds())
	}
}

// TestTriedIsNotStored: entries whose commit failed are missing, whatever was thought of them before.
func TestTriedIsNotStored(t *testing.T) {
	x := start(t)
	entries, hash := chain(t, 1, [32]byte{}, 2)
	next, _ := chain(t, 3, hash, 1)
	x.mu.Lock()
	x.fail = errors.New("disk full")
	x.mu.Unlock()
	if err := x.send(wire.Audit, encode(t, &wire.AuditBatch{Head: head(1), Entries: entries})); err == nil {
		t.Error("acknowledged")
	}
	x.mu.Lock()
	x.fail = nil
	x.mu.Unlock()
	x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: next})
	if d := x.device(); d.AuditHead != 3 || !d.AuditBroken {
		t.Errorf("got head %d, broken %v, want 3 and the gap seen", d.AuditHead, d.AuditBroken)
	}
}

// TestPoison: a message that can never be stored, and one of who is no member, harm nobody in their group.
func TestPoison(t *testing.T) {
	x := start(t)
	huge := telemetry(1<<63, 1)
	type result struct {
		what string
		err  error
	}
	acks := make(chan result, 64)
	submit := func(what string, id fleet.DeviceID, tenant fleet.TenantID, c wire.Channel, payload []byte) {
		x.i.Submit(ingest.Message{Device: id, Tenant: tenant, Channel: c, Payload: payload, At: noon, Ack: func(err error) { acks <- result{what, err} }})
	}
	entries, _ := chain(t, 1, [32]byte{}, 1)
	audit := encode(t, &wire.AuditBatch{Head: head(9), Entries: entries})
	submit("good 1", "a", "main", wire.Telemetry, encode(t, telemetry(1, 3)))
	submit("huge", "b", "main", wire.Telemetry, encode(t, huge))
	submit("nobody", "nobody", "main", wire.Telemetry, encode(t, telemetry(1, 1)))
	submit("nobody's audit", "nobody", "main", wire.Audit, audit)
	submit("other tenant", "b", "other", wire.Telemetry, encode(t, telemetry(1, 1)))
	submit("audit", "a", "main", wire.Audit, audit)
	submit("good 2", "a", "main", wire.Telemetry, encode(t, telemetry(2, 3)))
	got := map[string]error{}
	var order []string
	for range 7 {
		r := <-acks
		got[r.what] = r.err
		if r.err == nil {
			order = append(order, r.what)
		}
	}
	for what, want := range map[string]error{
		"good 1": nil, "huge": nil, "nobody": fleet.ErrNotFound, "nobody's audit": fleet.ErrNotFound, "other tenant": fleet.ErrNotFound, "audit": nil, "good 2": nil,
	} {
		if !errors.Is(got[what], want) {
			t.Errorf("%s: got %v, want %v", what, got[what], want)
		}
	}
	if !slices.Equal(order, []string{"good 1", "huge", "audit", "good 2"}) {
		t.Errorf("acknowledged in the order %v", order)
	}
	if d := x.device(); d.Samples != 6 || d.AuditHead != 1 || d.AuditBroken {
		t.Errorf("device: got %d samples, head %d, broken %v", d.Samples, d.AuditHead, d.AuditBroken)
	}
	if kinds := x.kinds(); !slices.Equal(kinds, []string{"ingest.refused b"}) {
		t.Errorf("notes: got %v", kinds)
	}
}

// TestGroups: what waits is committed together and acknowledged in order.
func TestGroups(t *testing.T) {
	x := start(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	order := map[fleet.DeviceID][]int{}
	const n = 1000
	for i := range n {
		wg.Add(1)
		id := fleet.DeviceID([]string{"a", "b"}[i%2])
		if !x.i.Submit(ingest.Message{Device: id, Tenant: "main", Channel: wire.Telemetry, Payload: encode(t, telemetry(uint64(i+1), 1)), At: noon, Ack: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			order[id] = append(order[id], i)
			wg.Done()
		}}) {
			t.Fatal("no room")
		}
	}
	wg.Wait()
	for id, seqs := range order {
		if len(seqs) != n/2 || !slices.IsSorted(seqs) {
			t.Errorf("%s: not acknowledged in order", id)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.groups) > n/10 || slices.Max(x.groups) > 512 {
		t.Errorf("got %d groups, the largest %d", len(x.groups), slices.Max(x.groups))
	}
}

// TestBreak: what a till itself says it lost with a damaged file is an alarm of its own kind; what is missing without
// that is a gap, and a break that does not fit is a fork all the same.
func TestBreak(t *testing.T) {
	entries, last := chain(t, 1, [32]byte{}, 5)
	seal := func(r wire.AuditRecord) []wire.AuditEntry {
		r.At, r.Boot, r.Severity = noon.UnixMilli(), wire.Boot{1}, "alarm"
		e, err := wire.SealAudit(r)
		if err != nil {
			t.Fatal(err)
		}
		return []wire.AuditEntry{e}
	}
	for name, tt := range map[string]struct {
		then   []wire.AuditEntry
		want   []string
		detail map[string]string
	}{
		"skips": {seal(wire.AuditRecord{Seq: 20, Kind: "audit.break", Break: &wire.Break{Seq: 4}}), []string{"audit.break a"}, map[string]string{"entry": "20", "known": "4", "lost": "6 to 19"}},
		"goes on": {
			seal(wire.AuditRecord{Seq: 6, Kind: "audit.break", Prev: last, Break: &wire.Break{Seq: 5, Hash: last}}),
			[]string{"audit.break a"},
			map[string]string{"entry": "6", "known": "5"},
		},
		"nobody says why": {seal(wire.AuditRecord{Seq: 20, Kind: "link.up"}), []string{"audit.chain_broken a"}, map[string]string{"fault": "entries 6 to 19 are missing"}},
		"says no break":   {seal(wire.AuditRecord{Seq: 20, Kind: "audit.break"}), []string{"audit.chain_broken a"}, map[string]string{"fault": "entries 6 to 19 are missing"}},
		"does not fit": {
			seal(wire.AuditRecord{Seq: 6, Kind: "audit.break", Prev: [32]byte{9}, Break: &wire.Break{Seq: 5}}),
			[]string{"audit.chain_broken a"},
			map[string]string{"fault": "entry 6 does not follow entry 5"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := start(t)
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(1), Entries: entries})
			x.ok(wire.Audit, &wire.AuditBatch{Head: head(2), Entries: tt.then})
			if got := x.kinds(); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			evs, _, err := x.s.AuditTrail(t.Context(), "main", "", false, fleet.Page{Limit: 10})
			if err != nil || len(evs) != 1 || evs[0].Severity != "alarm" || !maps.Equal(evs[0].Detail, tt.detail) {
				t.Errorf("got %+v (%v), want an alarm with %v", evs, err, tt.detail)
			}
		})
	}
}

func TestClockAhead(t *testing.T) {
	x := start(t)
	for seq, sent := range map[uint64]time.Time{1: noon.AddDate(-20, 0, 0), 2: noon.Add(25 * time.Hour), 3: noon.AddDate(5, 0, 0), 4: noon.Add(23 * time.Hour)} {
		m := telemetry(seq, 1)
		m.Head.Sent = sent.UnixMilli()
		x.ok(wire.Telemetry, m)
	}
	if got := x.kinds(); !slices.Equal(got, []string{"device.clock_ahead a"}) || x.device().Samples != 4 {
		t.Errorf("got notes %v and %d samples, want one note and all samples", got, x.device().Samples)
	}
}

// TestStop ends while a message comes in now and then.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		i := ingest.New(ingest.Options{Log: quiet})
		done := make(chan error)
		go func() { done <- i.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// ending has the service end while a commit is under way.
type ending struct{ end func() }

func (s ending) Commit(ctx context.Context, in []fleet.Intake) ([]fleet.Outcome, error) {
	s.end()
	return make([]fleet.Outcome, len(in)), ctx.Err()
}

func (ending) AuditHead(ctx context.Context, _ fleet.DeviceID) (uint64, [32]byte, error) {
	return 0, [32]byte{}, ctx.Err()
}

// TestStopInACommit: what is being stored when the service ends is stored, and the device hears of it.
func TestStopInACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		i := ingest.New(ingest.Options{Store: ending{cancel}, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})
		acked := errors.New("not at all")
		i.Submit(ingest.Message{Device: "a", Tenant: "main", Channel: wire.Telemetry, Payload: encode(t, telemetry(1, 1)), At: noon, Ack: func(err error) { acked = err }})
		if err := i.Run(ctx); err != nil || acked != nil {
			t.Errorf("got %v, acknowledged with %v", err, acked)
		}
	})
}

// FuzzMessage sends anything on any channel: it is acknowledged, and the trail of the service stays whole.
func FuzzMessage(f *testing.F) {
	channels := []wire.Channel{wire.Telemetry, wire.Event, wire.Audit, wire.State, wire.Result, wire.Evidence, wire.DownOffer}
	entries, _ := chain(f, 1, [32]byte{}, 2)
	f.Add(0, encode(f, telemetry(1, 2)))
	f.Add(2, encode(f, &wire.AuditBatch{Head: head(1), Entries: entries}))
	f.Add(3, encode(f, &wire.StateReport{Head: head(1), AgentVersion: "1"}))
	f.Add(4, encode(f, &wire.ResultReport{Head: head(1), Kind: wire.OrderOffer, ID: "x", State: "OFFERED"}))
	x := start(f)
	f.Fuzz(func(t *testing.T, channel int, payload []byte) {
		if channel < 0 || channel >= len(channels) {
			return
		}
		x.t = t
		if err := x.send(channels[channel], payload); err != nil {
			t.Errorf("got %v", err)
		}
		<-x.stored
		if rep, err := x.s.VerifyAudit(t.Context(), "main", ""); err != nil || !rep.OK {
			t.Errorf("service trail: got %+v, %v", rep, err)
		}
	})
}
