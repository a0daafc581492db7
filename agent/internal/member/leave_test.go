package member_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/member"
)

func put(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestWipeEnds cuts the power before, in and after each step in turn. The wipe
// goes on at the next start until all is gone, and nothing else is.
func TestWipeEnds(t *testing.T) {
	for cut := range 8 {
		state := t.TempDir()
		l := &member.Leaving{File: filepath.Join(state, "leaving.json"), Ownership: &member.Ownership{File: filepath.Join(state, "owner.json")}}
		put(t, filepath.Join(state, "spool.db"))
		put(t, filepath.Join(state, "spool.db.broken-1"))
		put(t, filepath.Join(state, "pos", "deep", "receipts"))
		put(t, filepath.Join(state, "agent", "a", "tillward-agent"))
		put(t, filepath.Join(state, "elsewhere", "kept"))
		if err := os.Symlink(filepath.Join(state, "elsewhere"), filepath.Join(state, "pos", "link")); err != nil {
			t.Fatal(err)
		}
		if l.Begun() {
			t.Fatal("begun before it began")
		}
		if err := l.Begin(4); err != nil {
			t.Fatal(err)
		}
		n := 0
		power := func() { // the process is gone: nothing runs after it
			if n++; n == cut {
				panic("cut")
			}
		}
		step := func(run func() error) func() error {
			return func() error {
				power()
				err := run()
				power()
				return err
			}
		}
		steps := []member.Step{
			{Name: "pos", Run: step(func() error { return member.Empty(filepath.Join(state, "pos")) })},
			{Name: "books", Run: step(func() error { return member.Remove(state, "spool.db") })},
			{Name: "none", Run: step(func() error { return errors.Join(member.Empty(state+"-none"), member.Remove(state+"-none", "x")) })},
		}
		starts := 0
		for l.Begun() {
			if starts++; starts > 2 {
				t.Fatalf("cut %d: the wipe does not end", cut)
			}
			var err error
			func() {
				defer func() {
					if recover() != nil {
						err = errors.New("cut")
					}
				}()
				err = l.Wipe(steps)
			}()
			if wantErr := cut >= 1 && cut <= 6 && starts == 1; (err != nil) != wantErr {
				t.Errorf("cut %d, start %d: %v", cut, starts, err)
			}
		}
		for path, want := range map[string]bool{
			"spool.db": false, "spool.db.broken-1": false, "pos": true, "pos/deep": false, "pos/link": false,
			"elsewhere/kept": true, "agent/a/tillward-agent": true, "owner.json": true, "leaving.json": false,
		} {
			if got := there(filepath.Join(state, path)); got != want {
				t.Errorf("cut %d: %s there %v, want %v", cut, path, got, want)
			}
		}
	}
}

// TestWipeSparesNothing: what cannot be removed now, or a disk too full for the
// mark, does not spare the rest; and the wipe has not ended.
func TestWipeSparesNothing(t *testing.T) {
	state := t.TempDir()
	l := &member.Leaving{File: filepath.Join(state, "leaving.json"), Ownership: &member.Ownership{File: filepath.Join(state, "owner.json")}}
	if err := errors.Join(l.Begin(4), os.Mkdir(l.Ownership.File+".new", 0o700)); err != nil { // the mark cannot be written
		t.Fatal(err)
	}
	put(t, filepath.Join(state, "spool.db"))
	steps := []member.Step{
		{Name: "pos", Run: func() error { return errors.New("device or resource busy") }},
		{Name: "books", Run: func() error { return member.Remove(state, "spool.db") }},
	}
	if err := l.Wipe(steps); err == nil || !l.Begun() || there(filepath.Join(state, "spool.db")) {
		t.Errorf("got %v, begun %v, books there %v", err, l.Begun(), there(filepath.Join(state, "spool.db")))
	}
	if err := errors.Join(os.Remove(l.Ownership.File+".new"), l.Wipe(steps[1:])); err != nil || l.Begun() || !there(l.Ownership.File) {
		t.Errorf("got %v, begun %v", err, l.Begun())
	}
}

// TestGivenUp: the owner before cannot take the box back by the chain he had.
func TestGivenUp(t *testing.T) {
	d := newDeal(t)
	dir := t.TempDir()
	o := &member.Ownership{File: filepath.Join(dir, "owner.json"), Vendor: d.vendor()}
	l := &member.Leaving{File: filepath.Join(dir, "leaving.json"), Ownership: o}
	one := d.sell("vendor", "one")
	if _, err := o.Check(d.voucher.Device, "one", one); err != nil {
		t.Fatal(err)
	}
	two := d.sell("one", "two")
	entries, err := o.Fits(d.mark())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Begin(entries), l.Wipe(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Check(d.voucher.Device, "one", one); !errors.Is(err, member.ErrOwner) {
		t.Errorf("the owner before: got %v, want ErrOwner", err)
	}
	if _, err := o.Check(d.voucher.Device, "one", nil); !errors.Is(err, member.ErrOwner) {
		t.Errorf("without a voucher: got %v, want ErrOwner", err)
	}
	if name, err := o.Check(d.voucher.Device, "two", two); err != nil || name != "two" {
		t.Errorf("the next owner: got %q, %v", name, err)
	}
}

// TestTornJournal: a journal that cannot be read has begun all the same.
func TestTornJournal(t *testing.T) {
	dir := t.TempDir()
	l := &member.Leaving{File: filepath.Join(dir, "leaving.json"), Ownership: &member.Ownership{File: filepath.Join(dir, "owner.json")}}
	if err := os.WriteFile(l.File, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var ran []string
	err := l.Wipe([]member.Step{{Name: "one", Run: func() error { ran = append(ran, fmt.Sprint(l.Begun())); return nil }}})
	if err != nil || !slices.Equal(ran, []string{"true"}) || l.Begun() {
		t.Errorf("got %v, ran %q, begun %v", err, ran, l.Begun())
	}
}
