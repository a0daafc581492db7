package member_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/provisioning/owner"
)

// deal is a vendor, two owners and the voucher of one box.
type deal struct {
	t       *testing.T
	keys    map[string]ed25519.PrivateKey
	voucher owner.Voucher
	at      time.Time
}

func newDeal(t *testing.T) *deal {
	t.Helper()
	d := &deal{t: t, keys: map[string]ed25519.PrivateKey{}, at: time.Now().Add(-time.Hour)}
	for _, name := range []string{"vendor", "one", "two", "thief"} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		d.must(err)
		d.keys[name] = key
	}
	var err error
	d.voucher, err = owner.NewVoucher(d.keys["vendor"], owner.Product{Vendor: "V", EKHash: sha256.Sum256([]byte("ek")), Model: "m", Serial: "s"}, d.at)
	d.must(err)
	return d
}

func (d *deal) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *deal) vendor() ed25519.PublicKey { return d.keys["vendor"].Public().(ed25519.PublicKey) }

// sell passes the box on and returns the voucher.
func (d *deal) sell(from, to string) []byte {
	d.t.Helper()
	party := owner.Party{Key: d.keys[to].Public().(ed25519.PublicKey), Name: to, Tenant: to}
	d.at = d.at.Add(time.Minute)
	v, err := d.voucher.Transfer(d.vendor(), d.keys[from], party, owner.Terms{MayTransfer: true}, d.at)
	d.must(err)
	d.voucher, err = v.Accept(d.vendor(), d.keys[to], d.at)
	d.must(err)
	return d.voucher.Bytes()
}

// mark is the argument of relinquish for the voucher as it stands.
func (d *deal) mark() string {
	d.t.Helper()
	s, err := d.voucher.Verify(d.vendor(), time.Now(), owner.Mark{})
	d.must(err)
	return fmt.Sprintf("%d:%s", s.Mark.Count, hex.EncodeToString(s.Mark.Head))
}

// TestOwnership follows a box from the vendor to its second owner. Whoever it
// is not the property of is refused, and so is who shows an older chain.
func TestOwnership(t *testing.T) {
	d := newDeal(t)
	o := &member.Ownership{File: filepath.Join(t.TempDir(), "owner.json"), Vendor: d.vendor()}
	device := d.voucher.Device
	fresh := d.voucher.Bytes()
	accepts := func(what, tenant string, voucher []byte, want string) {
		t.Helper()
		if name, err := o.Check(device, tenant, voucher); err != nil || name != want {
			t.Errorf("%s: got %q, %v, want %q", what, name, err, want)
		}
	}
	refuses := func(what, tenant string, voucher []byte) {
		t.Helper()
		if name, err := o.Check(device, tenant, voucher); !errors.Is(err, member.ErrOwner) || name != "" {
			t.Errorf("%s: got %q, %v, want ErrOwner", what, name, err)
		}
	}

	accepts("a list without vouchers", "one", nil, "")
	refuses("still the vendor's", "one", fresh)
	refuses("garbage", "one", []byte("voucher"))
	one := d.sell("vendor", "one")
	refuses("another tenant", "two", one)
	if _, err := o.Check("another-device", "one", one); !errors.Is(err, member.ErrOwner) {
		t.Errorf("another device: got %v", err)
	}
	thief := newDeal(t)
	thief.keys["vendor"] = d.keys["thief"]
	thief.voucher, _ = owner.NewVoucher(d.keys["thief"], owner.Product{Vendor: "V", EKHash: sha256.Sum256([]byte("ek")), Model: "m", Serial: "s"}, d.at)
	refuses("a chain that another vendor began", "thief", thief.sell("vendor", "thief"))
	accepts("the first owner", "one", one, "one")
	accepts("the first owner once more", "one", one, "one")
	refuses("no voucher any more", "one", nil)
	refuses("a shorter one", "one", fresh)

	two := d.sell("one", "two")
	accepts("the second owner", "two", two, "two")
	refuses("the first owner by his own chain", "one", one)
	refuses("the first owner by the new chain", "one", two)

	if err := os.WriteFile(o.File, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Check(device, "two", two); err == nil {
		t.Error("a mark that cannot be read counts as none")
	}
}

// TestDiskOfAnotherBox: what was seen of one box's voucher does not keep another
// from being enrolled, and counts again in the first.
func TestDiskOfAnotherBox(t *testing.T) {
	d, other := newDeal(t), newDeal(t)
	other.keys = d.keys
	var err error
	other.voucher, err = owner.NewVoucher(d.keys["vendor"], owner.Product{Vendor: "V", EKHash: sha256.Sum256([]byte("another ek")), Model: "m", Serial: "s2"}, d.at)
	d.must(err)
	o := &member.Ownership{File: filepath.Join(t.TempDir(), "owner.json"), Vendor: d.vendor()}
	d.sell("vendor", "one")
	if _, err := o.Check(d.voucher.Device, "two", d.sell("one", "two")); err != nil {
		t.Fatal(err)
	}
	if name, err := o.Check(other.voucher.Device, "one", other.sell("vendor", "one")); err != nil || name != "one" {
		t.Errorf("in another box: got %q, %v", name, err)
	}
	if _, err := o.Check(other.voucher.Device, "one", nil); !errors.Is(err, member.ErrOwner) {
		t.Errorf("in another box, without its voucher: got %v, want ErrOwner", err)
	}
	// A box listed without vouchers is told apart too.
	if _, err := o.Check("listed", "one", nil); err != nil {
		t.Errorf("listed without a voucher: %v", err)
	}
	if _, err := o.Check("listed", "one", nil); err != nil {
		t.Errorf("listed without a voucher, again: %v", err)
	}
}

// TestUnchecked is a box whose image knows no vendor.
func TestUnchecked(t *testing.T) {
	o := &member.Ownership{File: filepath.Join(t.TempDir(), "owner.json")}
	if name, err := o.Check("d", "anyone", []byte("anything")); err != nil || name != "" {
		t.Errorf("got %q, %v", name, err)
	}
}

// TestFits: a box is given up by a voucher that is not older than what it has
// seen, and by nothing else.
func TestFits(t *testing.T) {
	d := newDeal(t)
	o := &member.Ownership{File: filepath.Join(t.TempDir(), "owner.json"), Vendor: d.vendor()}
	old := d.mark()
	if _, err := o.Check(d.voucher.Device, "one", d.sell("vendor", "one")); err != nil {
		t.Fatal(err)
	}
	here := d.mark()
	d.sell("one", "two")
	next := d.mark()
	other := "2:" + next[2:] // as long as what was seen, and another
	for mark, want := range map[string]int{here: 2, next: 4, old: 0, other: 0, "": 0, "4": 0, "4:": 0, "4:xyz": 0, "-4:0123456789abcdef": 0, "99999:0123456789abcdef": 0, here[:17]: 0, here + strings.Repeat("0", 64): 0} {
		n, err := o.Fits(mark)
		if n != want || (err == nil) != (want > 0) || err != nil && !errors.Is(err, member.ErrOwner) {
			t.Errorf("%.12q: got %d, %v, want %d", mark, n, err, want)
		}
	}
}
