package owner_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/owner"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// TestOrder accepts what is offered to the tenant: the device may enrol and
// gets its voucher. What is offered to somebody else is not his.
func TestOrder(t *testing.T) {
	s := newSite(t, 'a')
	p, err := s.Party(t.Context(), "a")
	if err != nil || p.Name != "Owner a" || p.Tenant != "a" || !bytes.Equal(p.Key, public('a')) {
		t.Fatalf("the tenant is %+v, %v", p, err)
	}
	one, two := newBox(1), newBox(2)
	file := deed.EncodeOrder([]deed.Voucher{one.offered(t, party('a')), two.offered(t, party('b'))})
	all, err := s.ImportVouchers(t.Context(), "a", file, "anna")
	if err != nil || len(all) != 2 || all[0].Outcome != "accepted" || all[1].Outcome != "refused" || !strings.Contains(all[1].Text, "Owner b") {
		t.Fatalf("got %+v, %v", all, err)
	}
	title, err := s.Title(t.Context(), "a", one.id)
	if err != nil || title.State != fleet.Owned || title.Owner != "Owner a" || title.Serial != "S-1" || title.Vendor != "Vend" || title.Order != "4711" || title.Entries != 2 {
		t.Errorf("got %+v, %v", title, err)
	}
	if l, err := s.store.ListedEK(t.Context(), one.hash()); err != nil || l.Tenant != "a" || l.Device != one.id || l.Serial != "S-1" {
		t.Errorf("listed as %+v, %v", l, err)
	}
	if s.severity(t, "ownership.accepted", one.id) != "info" || s.severity(t, "ownership.refused", two.id) != "warn" {
		t.Error("not in the trail")
	}
	for _, id := range []fleet.DeviceID{two.id, "d9"} {
		if _, err := s.Title(t.Context(), "a", id); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%s: got %v", id, err)
		}
	}
	if _, err := s.Title(t.Context(), "b", one.id); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("to another tenant: got %v", err)
	}
	all, err = s.ImportVouchers(t.Context(), "a", file, "anna")
	if err != nil || all[0].Outcome != "known" || all[1].Outcome != "refused" {
		t.Errorf("the same file again: got %+v, %v", all, err)
	}
	older := time.Now().Add(-time.Hour)
	other, err := one.voucher(t, older).Transfer(public('v'), key('v'), party('a'), deed.Terms{MayTransfer: true}, older)
	must(t, err)
	if got, err := s.imports(t, other); !errors.Is(err, deed.ErrStale) {
		t.Errorf("another offer for the same device: got %q, %v", got, err)
	}
	if got, err := s.imports(t, s.voucher(t, one.id)); err != nil || got != "known" {
		t.Errorf("what is on file: got %q, %v", got, err)
	}
}

// TestRefusedVouchers shows what no chain does: each twin is one step away from
// what is accepted.
func TestRefusedVouchers(t *testing.T) {
	b := newBox(1)
	good := b.offered(t, party('a'))
	forged := good
	forged.Entries = append([]deed.Entry{}, good.Entries...)
	forged.Entries[0].MayTransfer = false
	other := good
	other.Device, other.EKHash = string(newBox(2).id), good.EKHash
	renamed := good
	renamed.Serial = "S-2"
	strange, err := deed.NewVoucher(key('x'), deed.Product{Vendor: "Vend", EKHash: b.ek, Model: "vend-1", Serial: "S-1"}, time.Now())
	must(t, err)
	unknown, err := deed.NewVoucher(key('x'), deed.Product{Vendor: "Nobody", EKHash: b.ek, Model: "vend-1", Serial: "S-1"}, time.Now())
	must(t, err)
	for _, c := range []struct {
		name string
		v    deed.Voucher
		err  error
	}{
		{"changed entry", forged, fleet.ErrForbidden},
		{"for another device", other, fleet.ErrInvalid},
		{"other serial number", renamed, fleet.ErrForbidden},
		{"not by the vendor", strange, fleet.ErrForbidden},
		{"of a vendor nobody knows", unknown, fleet.ErrForbidden},
		{"offered to nobody", b.voucher(t, time.Now()), fleet.ErrForbidden},
		{"offered to somebody else", b.offered(t, party('b')), fleet.ErrForbidden},
		{"before its time", transfer(t, b.voucher(t, time.Now()), 'v', party('a'), time.Now().Add(time.Hour)), fleet.ErrConflict},
		{"from the future", func() deed.Voucher {
			v, err := b.voucher(t, time.Now()).Transfer(public('v'), key('v'), party('a'), deed.Terms{}, time.Now().Add(time.Hour))
			must(t, err)
			return v
		}(), fleet.ErrConflict},
	} {
		s := newSite(t, 'a')
		if got, err := s.imports(t, c.v); !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %v", c.name, got, err, c.err)
		}
		if _, err := s.store.Ownership(t.Context(), b.id); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%s: it is on file, %v", c.name, err)
		}
		if _, err := s.store.ListedEK(t.Context(), b.hash()); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%s: the device may enrol, %v", c.name, err)
		}
	}
	s := newSite(t, 'a')
	if got, err := s.imports(t, good); err != nil || got != "accepted" {
		t.Errorf("the honest one: got %q, %v", got, err)
	}
	if _, err := s.ImportVouchers(t.Context(), "a", []byte("PEM?"), "anna"); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("no order file: got %v", err)
	}
	if _, err := s.ImportVouchers(t.Context(), "b", deed.EncodeOrder([]deed.Voucher{good}), "anna"); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("for a tenant that is not here: got %v", err)
	}
}

// TestClockAhead takes a voucher whose last statement was made by a clock that
// is a little ahead of ours.
func TestClockAhead(t *testing.T) {
	s := newSite(t, 'a')
	b := newBox(1)
	v, err := b.voucher(t, time.Now()).Transfer(public('v'), key('v'), party('a'), deed.Terms{}, time.Now().Add(time.Minute))
	must(t, err)
	if got, err := s.imports(t, v); err != nil || got != "accepted" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestTransfer sells a device from a to b and back: offered, accepted, let go.
// No step before the last takes anything from who has it.
func TestTransfer(t *testing.T) {
	a, b := newSite(t, 'a'), newSite(t, 'b')
	a.run(t)
	dev := a.owned(t, 1)
	ab := fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Name: "Owner b", Tenant: "b", Key: public('b')}, MayTransfer: true, By: "anna"}
	title, err := a.Transfer(t.Context(), ab)
	if err != nil || title.State != fleet.Offered || title.Next == nil || title.Next.Name != "Owner b" || title.Owner != "Owner a" || title.Entries != 3 {
		t.Fatalf("offered: %+v, %v", title, err)
	}
	if a.severity(t, "ownership.offered", dev.id) != "warn" {
		t.Error("the offer is not in the trail")
	}
	if _, err := a.Transfer(t.Context(), ab); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a second offer: got %v", err)
	}
	if got, err := b.imports(t, a.voucher(t, dev.id)); err != nil || got != "accepted" {
		t.Fatalf("b got %q, %v", got, err)
	}
	if told, cut := a.asked(); told+cut != 0 || a.state(t, dev.id) != fleet.Offered {
		t.Fatal("a lets go of what it does not know to be accepted")
	}
	if got, err := a.imports(t, b.voucher(t, dev.id)); err != nil || got != "releasing" {
		t.Fatalf("a got %q, %v", got, err)
	}
	if told, cut := a.asked(); told != 1 || cut != 1 || a.state(t, dev.id) != fleet.Releasing {
		t.Fatalf("told %d, cut %d, %s; want the device told to give up and restricted", told, cut, a.state(t, dev.id))
	}
	if adm, err := a.store.Admit(t.Context(), dev.id, "a", "c1"); err != nil || adm != fleet.AdmitQuarantine {
		t.Errorf("admitted as %s, %v; want only the q door", adm, err)
	}
	if v, err := a.Voucher(t.Context(), dev.id); v != nil || err != nil {
		t.Errorf("a still gives its voucher out, %v", err)
	}
	must(t, a.Ready(t.Context(), dev.id)) // it is back, by the q door
	if told, _ := a.asked(); told != 2 {
		t.Errorf("told %d times, want again when it is back", told)
	}
	if got, err := a.imports(t, b.voucher(t, dev.id)); err != nil || got != "known" {
		t.Errorf("the same again: got %q, %v", got, err)
	}

	mark := markOf(t, b.voucher(t, dev.id))
	done := fleet.Command{ID: "c1", Device: dev.id, Tenant: "a", Verb: owner.Relinquish, Args: map[string]string{"mark": mark}, State: fleet.CommandFailed, Code: "busy"}
	a.Ended(done)
	a.eventually(t, "ownership.not-released", dev.id, "alarm")
	if a.state(t, dev.id) != fleet.Releasing {
		t.Fatal("a device that did not give up is let go")
	}
	for range 3 { // it comes again and again, and fails as often as it is told
		must(t, a.Ready(t.Context(), dev.id))
	}
	if told, _ := a.asked(); told != 2 {
		t.Errorf("told %d times, want it left alone for a while", told)
	}
	for _, twin := range []fleet.Command{
		{Device: dev.id, Verb: "reboot", State: fleet.CommandSucceeded, Args: done.Args},
		{Device: dev.id, Verb: owner.Relinquish, State: fleet.CommandSucceeded, Args: map[string]string{"mark": "3:00"}},
		{Device: "d9", Verb: owner.Relinquish, State: fleet.CommandSucceeded, Args: done.Args},
	} {
		a.Ended(twin)
	}
	done.ID, done.State = "c2", fleet.CommandFailed // what came before it has been looked at when this has
	a.Ended(done)
	a.eventually(t, "ownership.not-released", dev.id, "alarm")
	if a.state(t, dev.id) != fleet.Releasing {
		t.Fatal("it is let go for another command")
	}
	done.ID, done.State = "c3", fleet.CommandSucceeded
	a.Ended(done)
	a.wait(t, dev.id, fleet.Released)
	if _, err := a.store.Admit(t.Context(), dev.id, "a", "c1"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("its certificate still opens something: %v", err)
	}
	a.eventually(t, "device.left", dev.id, "info")
	if _, cut := a.asked(); cut != 2 || a.severity(t, "ownership.released", dev.id) != "warn" {
		t.Errorf("cut %d times", cut)
	}
	if to, left, err := a.Left(t.Context(), dev.id); err != nil || !left || to != "Owner b" {
		t.Errorf("it left %t to %q, %v", left, to, err)
	}
	if _, err := a.Transfer(t.Context(), ab); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("sold twice: got %v", err)
	}

	// And back again, which is the same in the other direction.
	if _, err := b.Transfer(t.Context(), fleet.Transfer{Tenant: "b", Device: dev.id, To: fleet.Party{Name: "Owner a", Tenant: "a", Key: public('a')}, By: "ben"}); err != nil {
		t.Fatal(err)
	}
	if got, err := a.imports(t, b.voucher(t, dev.id)); err != nil || got != "accepted" || a.state(t, dev.id) != fleet.Owned {
		t.Errorf("back: got %q, %v", got, err)
	}
	if l, err := a.store.ListedEK(t.Context(), dev.hash()); err != nil || l.Tenant != "a" {
		t.Errorf("listed as %+v, %v", l, err)
	}
	if _, left, err := a.Left(t.Context(), dev.id); err != nil || left {
		t.Errorf("it is back, and left %t, %v", left, err)
	}
	// b never saw the device: there is nothing to give up.
	if got, err := b.imports(t, a.voucher(t, dev.id)); err != nil || got != "releasing" || b.state(t, dev.id) != fleet.Released {
		t.Errorf("b got %q, %v, %s", got, err, b.state(t, dev.id))
	}
}

// markOf names the whole chain as the command does.
func markOf(t *testing.T, v deed.Voucher) string {
	t.Helper()
	s, err := v.Verify(public('v'), time.Now().Add(time.Minute), deed.Mark{})
	must(t, err)
	return owner.Mark(s.Mark)
}

// eventually waits for an entry about the device.
func (s *site) eventually(t *testing.T, kind string, id fleet.DeviceID, want string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); s.severity(t, kind, id) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s that is %s", kind, want)
		}
	}
}

// TestSoldTwice shows chains that contradict what was seen: an alarm, and
// nothing changes.
func TestSoldTwice(t *testing.T) {
	a := newSite(t, 'a')
	dev := a.owned(t, 1)
	own := a.voucher(t, dev.id)
	toB, toC := transfer(t, own, 'a', party('b'), time.Time{}), transfer(t, own, 'a', party('c'), time.Time{})
	if got, err := a.imports(t, toB); err != nil || got != "known" {
		t.Fatalf("got %q, %v", got, err)
	}
	shorter := own
	shorter.Entries = nil
	accepted, err := toC.Accept(public('v'), key('c'), time.Now())
	must(t, err)
	for name, v := range map[string]deed.Voucher{"shorter": own, "shorter still": shorter, "sold twice": toC, "sold twice and accepted": accepted} {
		if got, err := a.imports(t, v); !errors.Is(err, fleet.ErrConflict) || !errors.Is(err, deed.ErrStale) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if a.severity(t, "ownership.refused", dev.id) != "alarm" {
			t.Errorf("%s: no alarm", name)
		}
	}
	if told, cut := a.asked(); told+cut != 0 || a.state(t, dev.id) != fleet.Offered {
		t.Errorf("told %d, cut %d, %s", told, cut, a.state(t, dev.id))
	}
}

func TestTransferRefused(t *testing.T) {
	a := newSite(t, 'a')
	dev := a.owned(t, 1)
	plain := newBox(2) // joined without a voucher
	a.enrolled(t, plain)
	b := fleet.Party{Name: "Owner b", Tenant: "b", Key: public('b')}
	for _, c := range []struct {
		name string
		q    fleet.Transfer
		err  error
	}{
		{"no voucher", fleet.Transfer{Tenant: "a", Device: plain.id, To: b}, fleet.ErrConflict},
		{"to himself", fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Name: "me", Key: public('a')}}, fleet.ErrInvalid},
		{"short key", fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Name: "b", Key: []byte{1}}}, fleet.ErrInvalid},
		{"no key", fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Name: "b"}}, fleet.ErrInvalid},
		{"no name", fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Key: public('b')}}, fleet.ErrInvalid},
		{"effective before it was made", fleet.Transfer{Tenant: "a", Device: dev.id, To: b, NotBefore: time.Now().Add(-time.Hour)}, fleet.ErrInvalid},
		{"of another tenant", fleet.Transfer{Tenant: "b", Device: dev.id, To: b}, fleet.ErrNotFound},
	} {
		if _, err := a.Transfer(t.Context(), c.q); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
	if _, err := a.Object(t.Context(), "a", dev.id, "anna", "why"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("object to nothing: got %v", err)
	}
	if a.state(t, dev.id) != fleet.Owned {
		t.Errorf("it is %s", a.state(t, dev.id))
	}
	// Who may only give it back may not sell it.
	lease := newBox(3)
	v, err := lease.voucher(t, time.Now()).Transfer(public('v'), key('v'), party('a'), deed.Terms{}, time.Now())
	must(t, err)
	if _, err := a.imports(t, v); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Transfer(t.Context(), fleet.Transfer{Tenant: "a", Device: lease.id, To: b}); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("sells a lease: got %v", err)
	}
	if _, err := a.Transfer(t.Context(), fleet.Transfer{Tenant: "a", Device: lease.id, To: fleet.Party{Name: "Vend", Key: public('v')}}); err != nil {
		t.Errorf("gives a lease back: got %v", err)
	}
}

// TestTakenBack voids an offer; who accepts it all the same has a chain that
// contradicts.
func TestTakenBack(t *testing.T) {
	a := newSite(t, 'a')
	dev := a.owned(t, 1)
	if _, err := a.Transfer(t.Context(), fleet.Transfer{Tenant: "a", Device: dev.id, To: fleet.Party{Name: "Owner b", Key: public('b')}, By: "anna"}); err != nil {
		t.Fatal(err)
	}
	accepted, err := a.voucher(t, dev.id).Accept(public('v'), key('b'), time.Now())
	must(t, err)
	title, err := a.Object(t.Context(), "a", dev.id, "anna", "not paid")
	if err != nil || title.State != fleet.Owned || title.Next != nil || a.severity(t, "ownership.objected", dev.id) != "warn" {
		t.Fatalf("got %+v, %v", title, err)
	}
	if got, err := a.imports(t, accepted); !errors.Is(err, deed.ErrStale) || a.state(t, dev.id) != fleet.Owned {
		t.Errorf("accepted after all: got %q, %v", got, err)
	}
}

// overridden is the site's voucher with an override to b that the vendor dated
// back, as issued and as accepted.
func overridden(t *testing.T, v deed.Voucher) (issued, accepted deed.Voucher) {
	t.Helper()
	past := time.Now().Add(-deed.MinWait - time.Hour)
	issued, err := v.Override(key('v'), party('b'), past.Add(deed.MinWait), past)
	must(t, err)
	accepted, err = issued.Accept(public('v'), key('b'), time.Now())
	must(t, err)
	return issued, accepted
}

// old is a device that a has for long, so that a vendor may date back.
func old(t *testing.T, s *site) box {
	t.Helper()
	b, then := newBox(1), time.Now().Add(-60*24*time.Hour)
	v, err := b.voucher(t, then).Transfer(public('v'), key('v'), party('a'), deed.Terms{MayTransfer: true}, then)
	must(t, err)
	if v, err = v.Accept(public('v'), key('a'), then); err == nil {
		_, err = s.imports(t, v)
	}
	must(t, err)
	s.enrolled(t, b)
	return b
}

// TestOverride counts the wait of an override from when this service heard of
// it, whatever the vendor's date says.
func TestOverride(t *testing.T) {
	for _, both := range []bool{false, true} { // the override alone, or accepted already
		a := newSite(t, 'a')
		dev := old(t, a)
		issued, accepted := overridden(t, a.voucher(t, dev.id))
		if both {
			if got, err := a.imports(t, accepted); !errors.Is(err, fleet.ErrConflict) || !strings.Contains(err.Error(), "may object") {
				t.Fatalf("accepted before anybody here heard of it: got %q, %v", got, err)
			}
		} else if got, err := a.imports(t, issued); err != nil || got != "override" {
			t.Fatalf("got %q, %v", got, err)
		}
		o, err := a.store.Ownership(t.Context(), dev.id)
		if wait := time.Until(o.Deadline); err != nil || o.State != fleet.Offered || wait < deed.MinWait-time.Minute || wait > deed.MinWait {
			t.Errorf("got %s with %s to object, %v", o.State, time.Until(o.Deadline), err)
		}
		if a.severity(t, "ownership.override", dev.id) != "alarm" {
			t.Error("no alarm")
		}
		if got, err := a.imports(t, accepted); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("accepted before its time: got %q, %v", got, err)
		}
		if got, err := a.imports(t, issued); err != nil || got != "known" {
			t.Errorf("the same again: got %q, %v", got, err)
		}
		if again, err := a.store.Ownership(t.Context(), dev.id); err != nil || !again.Deadline.Equal(o.Deadline) {
			t.Errorf("the wait began anew: %s, %v", again.Deadline, err)
		}
		if told, cut := a.asked(); told+cut != 0 {
			t.Fatal("the device is let go before the wait is over")
		}
		if both { // the wait is over, and nobody has objected
			o.Deadline = time.Now().Add(-time.Second)
			must(t, a.store.PutOwnership(t.Context(), o, fleet.AuditEvent{Kind: "test"}))
			if got, err := a.imports(t, accepted); err != nil || got != "releasing" || a.state(t, dev.id) != fleet.Releasing {
				t.Errorf("after the wait: got %q, %v", got, err)
			}
			continue
		}
		if title, err := a.Object(t.Context(), "a", dev.id, "anna", "here I am"); err != nil || title.State != fleet.Owned || !title.Deadline.IsZero() {
			t.Errorf("objected: %+v, %v", title, err)
		}
		if got, err := a.imports(t, accepted); !errors.Is(err, deed.ErrStale) {
			t.Errorf("accepted all the same: got %q, %v", got, err)
		}
	}
}

// TestOverrideAtFirstSight takes in a voucher of its own, restored, that the
// vendor has overridden meanwhile.
func TestOverrideAtFirstSight(t *testing.T) {
	a, before := newSite(t, 'a'), newSite(t, 'a')
	dev := old(t, before)
	issued, _ := overridden(t, before.voucher(t, dev.id))
	if got, err := a.imports(t, issued); err != nil || got != "override" {
		t.Errorf("got %q, %v", got, err)
	}
	o, err := a.store.Ownership(t.Context(), dev.id)
	if err != nil || o.State != fleet.Offered || time.Until(o.Deadline) < deed.MinWait-time.Minute || a.severity(t, "ownership.override", dev.id) != "alarm" {
		t.Errorf("got %+v, %v", o, err)
	}
	if l, err := a.store.ListedEK(t.Context(), dev.hash()); err != nil || l.Tenant != "a" {
		t.Errorf("listed as %+v, %v", l, err)
	}
}

// TestResume starts the service after it stopped between what the device said
// and what follows from it, at each of the points.
func TestResume(t *testing.T) {
	for _, at := range []string{"result stored", "released", "nothing said"} {
		a := newSite(t, 'a')
		dev := a.owned(t, 1)
		sold := transfer(t, a.voucher(t, dev.id), 'a', party('b'), time.Time{})
		sold, err := sold.Accept(public('v'), key('b'), time.Now())
		must(t, err)
		if got, err := a.imports(t, sold); err != nil || got != "releasing" {
			t.Fatalf("got %q, %v", got, err)
		}
		c, err := a.store.AddCommand(t.Context(), fleet.Command{
			Device: dev.id, Tenant: "a", Verb: owner.Relinquish, Args: map[string]string{"mark": markOf(t, sold)}, IssuedAt: time.Now(), NotAfter: time.Now().Add(time.Hour),
		}, fleet.AuditEvent{Kind: "command.issued"})
		must(t, err)
		if at != "nothing said" {
			_, err = a.store.Commit(t.Context(), []fleet.Intake{{Device: dev.id, Tenant: "a", At: time.Now(), CommandEnd: &fleet.CommandEnd{ID: c.ID, State: fleet.CommandSucceeded}}})
			must(t, err)
		}
		if at == "released" {
			o, err := a.store.Ownership(t.Context(), dev.id)
			must(t, err)
			o.State = fleet.Released
			must(t, a.store.PutOwnership(t.Context(), o, fleet.AuditEvent{Kind: "test"}))
		}
		again := &site{Registry: owner.New(a.options()), letter: 'a', tenant: "a", store: a.store}
		again.run(t)
		if at == "nothing said" {
			again.Ended(fleet.Command{ID: "x", Device: dev.id, Verb: owner.Relinquish, Args: c.Args, State: fleet.CommandExpired})
			again.eventually(t, "ownership.not-released", dev.id, "alarm")
			if a.state(t, dev.id) != fleet.Releasing {
				t.Errorf("%s: it is %s", at, a.state(t, dev.id))
			}
			continue
		}
		again.wait(t, dev.id, fleet.Released)
	}
}

// TestVendorChangesKey takes vouchers by either key of a vendor.
func TestVendorChangesKey(t *testing.T) {
	s := newSite(t, 'a', func(o *owner.Options) {
		o.Vendors = []owner.Vendor{{Name: "Vend", Key: ed25519.PublicKey(public('w'))}, {Name: "Vend", Key: public('v')}}
	})
	if got, err := s.imports(t, newBox(1).offered(t, party('a'))); err != nil || got != "accepted" {
		t.Errorf("by the older key: got %q, %v", got, err)
	}
}

// TestClockSetBack reads what is on file although our clock says that it has
// not been signed yet.
func TestClockSetBack(t *testing.T) {
	s := newSite(t, 'a')
	b := newBox(1)
	later := time.Now().Add(24 * time.Hour)
	v, err := b.voucher(t, later).Transfer(public('v'), key('v'), party('a'), deed.Terms{MayTransfer: true}, later)
	must(t, err)
	if v, err = v.Accept(public('v'), key('a'), later); err != nil {
		t.Fatal(err)
	}
	if got, err := s.imports(t, v); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("from tomorrow: got %q, %v", got, err)
	}
	must(t, s.store.PutOwnership(t.Context(), fleet.Ownership{Device: b.id, Voucher: v.Bytes(), Entries: 2, Owner: "Owner a", State: fleet.Owned}, fleet.AuditEvent{Kind: "test"}))
	if title, err := s.Title(t.Context(), "a", b.id); err != nil || title.Owner != "Owner a" {
		t.Errorf("got %+v, %v", title, err)
	}
}
