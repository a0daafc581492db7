package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// TestBreakIsExplainedByAnAnchor: what a device lost with a damaged file is missing until its TPM has signed the record of it.
func TestBreakIsExplainedByAnAnchor(t *testing.T) {
	d := newTrail(t)
	d.sends("link.up", 0, nil)
	d.anchors(1)
	d.known = &wire.Break{Seq: d.seq, Hash: d.hash}
	out := d.sends("audit.break", 6, nil)
	if st := d.state(); !out.Gap || !st.Broken || st.Missing != 6 || st.Lost != 0 {
		t.Errorf("behind the break: %+v", st)
	}
	if rep, err := d.s.VerifyAudit(t.Context(), "main", d.id); err != nil || rep.OK || rep.BrokenAt != 3 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	bad := fleet.AnchorSeen{Counter: 2, Fault: "another key"}
	d.sends("audit.anchor", 0, &bad)
	if st := d.state(); st.Missing != 6 {
		t.Errorf("by an anchor that does not hold: %+v", st)
	}
	d.anchors(2)
	if st := d.state(); st.Broken || st.Missing != 0 || st.Lost != 6 {
		t.Errorf("signed: %+v", st)
	}
	if dev, err := d.s.Device(t.Context(), "main", d.id); err != nil || dev.AuditBroken {
		t.Errorf("device: %+v, %v", dev.AuditBroken, err)
	}
	if rep, err := d.s.VerifyAudit(t.Context(), "main", d.id); err != nil || !rep.OK {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	// A plain gap behind it is not explained by the next anchor.
	d.known = nil // and no record that only has the name
	d.sends("audit.break", 3, nil)
	d.anchors(3)
	if st := d.state(); !st.Broken || st.Missing != 3 || st.Lost != 6 {
		t.Errorf("a gap: %+v", st)
	}
}

// breaks has a trail of two entries lose so many, and records that; an anchor signs it when it is told to.
func (d *trailOf) breaks(losing uint64, counter uint64) {
	d.t.Helper()
	d.known = &wire.Break{Seq: d.seq, Hash: d.hash}
	d.sends("audit.break", losing, nil)
	if counter > 0 {
		d.anchors(counter)
	}
}

func (d *trailOf) verifies(what string, brokenAt uint64) {
	d.t.Helper()
	rep, err := d.s.VerifyAudit(d.t.Context(), "main", d.id)
	if err != nil || rep.OK != (brokenAt == 0) || rep.BrokenAt != brokenAt {
		d.t.Errorf("%s: got %+v, %v, want broken at %d", what, rep, err, brokenAt)
	}
}

// TestAnotherBreakOfTheSameSize: what a device lost once, and its TPM signed, excuses nothing that it loses later:
// not while both are at hand, and not when the first is in a sealed file.
func TestAnotherBreakOfTheSameSize(t *testing.T) {
	for _, away := range []bool{false, true} {
		d := newTrail(t)
		d.sends("link.up", 0, nil)
		d.anchors(1)
		d.breaks(6, 2) // 3 to 8, the break is 9, its anchor 10
		d.verifies("the first", 0)
		if away {
			must(t, d.putsAway(10, 4))
			d.verifies("put away", 0)
		}
		d.breaks(6, 0) // 11 to 16
		d.verifies("the second, that nobody signed", 11)
		if st := d.state(); !st.Broken || st.Missing != 6 || st.Lost != 6 {
			t.Errorf("got %+v", st)
		}
		d.breaks(2, 3) // 18 and 19: the anchor signs this one, and not what another lost before it
		d.verifies("a third, signed", 11)
		if st := d.state(); !st.Broken || st.Missing != 6 || st.Lost != 8 {
			t.Errorf("got %+v", st)
		}
	}
}

// TestSignedBehindTheBase: an anchor that signs a break which is in a sealed file by then counts it, and excuses
// nothing behind.
func TestSignedBehindTheBase(t *testing.T) {
	d := newTrail(t)
	d.sends("link.up", 0, nil)
	d.breaks(6, 0)
	must(t, d.putsAway(8, 2))
	d.anchors(1)
	d.verifies("signed late", 0)
	if st := d.state(); st.Lost != 6 || st.Missing != 0 || st.Broken {
		t.Errorf("got %+v", st)
	}
	d.breaks(6, 0)
	d.verifies("another", 10)
}

// TestLateOfWhatWasLost: what was lost and comes after all is lost no more, whether the break was signed by then or
// not; what comes late elsewhere takes nothing off what was lost.
func TestLateOfWhatWasLost(t *testing.T) {
	for _, signed := range []bool{false, true} {
		d := newTrail(t)
		all := chain(t, 1, [32]byte{}, 5, "link.up")
		late := func(evs ...fleet.AuditEvent) {
			t.Helper()
			_, err := d.s.Commit(t.Context(), []store.Intake{{Device: d.id, Tenant: "main", At: noon, Audit: evs}})
			must(t, err)
		}
		late(all[0])
		d.seq, d.hash = all[0].Seq, all[0].Hash
		counter := uint64(0)
		if signed {
			counter = 1
		}
		d.breaks(4, counter) // 2 to 5
		late(all[4])
		d.anchors(2)
		if st := d.state(); st.Lost != 3 || st.Missing != 0 {
			t.Errorf("signed %v, one came: got %+v", signed, st)
		}
		before := d.state().Head
		d.known = nil
		d.sends("link.up", 1, nil) // a gap
		if st := d.state(); st.Lost != 3 || st.Missing != 1 {
			t.Errorf("a gap: got %+v", st)
		}
		late(chain(t, before+1, [32]byte{1}, 1, "link.up")...)
		if st := d.state(); st.Lost != 3 || st.Missing != 0 {
			t.Errorf("it is filled: got %+v", st)
		}
		late(all[1], all[2], all[3])
		if st := d.state(); st.Lost != 0 || st.Missing != 0 {
			t.Errorf("signed %v, all came: got %+v", signed, st)
		}
	}
}

// TestLostIsOfItsTrail: what a device lost with the owner it had stays with that past.
func TestLostIsOfItsTrail(t *testing.T) {
	d := newTrail(t)
	d.sends("link.up", 0, nil)
	d.breaks(6, 1)
	must(t, d.s.PutOwnership(t.Context(), stands(d.id, 3, "abc", fleet.Released), event("ownership.set")))
	must(t, d.s.Reset(t.Context(), d.id, event("ownership.reset")))
	if rep, err := d.s.VerifyAudit(t.Context(), "main", d.id+".1"); err != nil || !rep.OK {
		t.Errorf("the past: %+v, %v", rep, err)
	}
	must(t, d.s.Enrol(t.Context(), device("main", 1)))
	d.seq, d.hash = 0, [32]byte{}
	d.sends("link.up", 0, nil)
	d.breaks(6, 0)
	d.verifies("the present", 2)
}

// TestFilledIsToldOnce: a device that leaves numbers out and brings them later, all day long, does not fill the
// service's trail: it is told that they came where it was told that they are missing, and not again.
func TestFilledIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		every int // which gap the alarm is raised of
		want  int
	}{{1, 40}, {10, 4}, {0, 0}} {
		d := newTrail(t)
		all := chain(t, 1, [32]byte{}, 80, "link.up")
		var in []store.Intake
		for n := range 40 {
			gap := store.Intake{Device: d.id, Tenant: "main", At: noon, Audit: all[2*n+1 : 2*n+2]}
			if tt.every > 0 && n%tt.every == 0 {
				gap.Service = &fleet.AuditEvent{Kind: "audit.chain_broken", Severity: "alarm", Subject: string(d.id)}
			}
			in = append(in, gap, store.Intake{Device: d.id, Tenant: "main", At: noon, Audit: all[2*n : 2*n+1]})
		}
		for _, some := range [][]store.Intake{in[:3], in[3:]} { // also between commits
			_, err := d.s.Commit(t.Context(), some)
			must(t, err)
		}
		if n := len(told(t, d.s, "audit.chain_filled")); n != tt.want {
			t.Errorf("an alarm of every %d. gap: told %d times that it is filled, want %d", tt.every, n, tt.want)
		}
		if st := d.state(); st.Broken || st.Head != 80 {
			t.Errorf("got %+v", st)
		}
	}
}

// TestMigratesWhatWasLost: of what was lost before each break had a row of its own, as much is excused as was
// signed, and where that is less than what is missing before breaks, nothing.
func TestMigratesWhatWasLost(t *testing.T) {
	const head = `INSERT INTO audit (n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, outcome, site, detail, body, hash, prev, facet) VALUES `
	more := ""
	entry := func(n int, id, kind string, seq int) {
		zero := strings.Repeat("0", 64)
		more += fmt.Sprintf("%s(%d, '%s', %d, 'main', 1, 1, '%s', 'info', '', '', '', '', '{}', X'A0', X'%s', X'%s', 1);\n", head, n, id, seq, kind, zero, zero)
	}
	for i, id := range []string{"a", "b", "c"} { // 3 to 8 are missing before a break, of b and c 10 and 11, too; of c all has been signed
		entry(10*i+10, id, "link.up", 2)
		entry(10*i+11, id, "audit.break", 9)
		entry(10*i+12, id, "audit.break", map[string]int{"a": 10, "b": 12, "c": 12}[id])
		entry(10*i+13, id, "audit.anchor", 13)
		more += fmt.Sprintf("INSERT INTO trail (device, head, hash, entries, broken, base, anchored, lost, break_seq, break_lost) VALUES ('%s', 13, X'00', 5, 0, 1, 12, %d, 0, 0);\n",
			id, map[string]int{"a": 6, "b": 6, "c": 8}[id])
		more += fmt.Sprintf("INSERT INTO segment (trail, first, last, hash, entries, file, sha256, bytes, at) VALUES ('%s', 1, 1, X'00', 1, 'f', X'00', 1, 1);\n", id)
	}
	more += `INSERT INTO trail (device, head, hash, entries, broken, anchored, lost, break_seq, break_lost) VALUES ('d', 9, X'00', 2, 0, 0, 0, 9, 6);`
	dir := earlier(t, 13, more)
	must(t, open(t, dir).Close())
	db, err := store.Behind(dir)
	must(t, err)
	defer db.Close()
	ask := func(query string) (got string) {
		t.Helper()
		rows, err := db.QueryContext(t.Context(), query)
		must(t, err)
		defer rows.Close()
		for rows.Next() {
			var id string
			var first, last int
			must(t, rows.Scan(&id, &first, &last))
			got += fmt.Sprintf("%s %d-%d, ", id, first, last)
		}
		must(t, rows.Err())
		return got
	}
	if got, want := ask(`SELECT device, first, last FROM lost_range ORDER BY device, first`), "a 3-8, c 3-8, c 10-11, "; got != want {
		t.Errorf("lost: got %s, want %s", got, want)
	}
	if got, want := ask(`SELECT device, break_first, gap_told FROM trail WHERE device IN ('a', 'b', 'd') ORDER BY device`), "a 0-1, b 0-1, d 3-1, "; got != want {
		t.Errorf("gaps: got %s, want %s", got, want)
	}
	if got, want := ask(`SELECT device, first, last FROM attestation_key`), "d1 1-1, "; got != want {
		t.Errorf("keys: got %s, want %s", got, want)
	}
}
