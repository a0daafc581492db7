package owner_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/owner"
)

// v is the vendor; b buys, n is next, x is a stranger.
func party(letter byte) owner.Party {
	return owner.Party{Key: public(key(letter)), Name: "Party " + string(letter), Tenant: "t-" + string(letter)}
}

func product(n byte) owner.Product {
	return owner.Product{Vendor: "Vend GmbH", EKHash: [32]byte(bytes.Repeat([]byte{n}, 32)), Model: "vend-1", Serial: "S" + string('0'+rune(n)), Order: "4711"}
}

// chain writes a voucher step by step, an hour apart.
type chain struct {
	t   testing.TB
	v   owner.Voucher
	now time.Time
}

func made(t testing.TB, n byte) *chain {
	t.Helper()
	v, err := owner.NewVoucher(key('v'), product(n), day)
	if err != nil {
		t.Fatal(err)
	}
	return &chain{t, v, day}
}

func (c *chain) take(v owner.Voucher, err error) *chain {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	return &chain{c.t, v, c.now.Add(time.Hour)}
}

func (c *chain) offer(from, to byte) *chain {
	c.t.Helper()
	return c.take(c.v.Transfer(public(key('v')), key(from), party(to), owner.Terms{MayTransfer: true}, c.now))
}

func (c *chain) accept(by byte) *chain {
	c.t.Helper()
	return c.take(c.v.Accept(public(key('v')), key(by), c.now))
}

func (c *chain) override(to byte) *chain {
	c.t.Helper()
	return c.take(c.v.Override(key('v'), party(to), c.now.Add(owner.MinWait), c.now))
}

func (c *chain) object(by byte) *chain {
	c.t.Helper()
	return c.take(c.v.Object(public(key('v')), key(by), c.now))
}

func (c *chain) later(d time.Duration) *chain { return &chain{c.t, c.v, c.now.Add(d)} }

func (c *chain) state(seen owner.Mark) owner.State {
	c.t.Helper()
	s, err := c.v.Verify(public(key('v')), c.now, seen)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *chain) wantOwner(letter byte) *chain {
	c.t.Helper()
	if got := c.state(owner.Mark{}).Owner; !got.Key.Equal(public(key(letter))) {
		c.t.Fatalf("owner is %s, want %c", got.Name, letter)
	}
	return c
}

// sold is the vendor's device at b, offered to nobody.
func sold(t testing.TB) *chain { return made(t, 1).offer('v', 'b').accept('b') }

func TestVoucherFromVendorToNextOwner(t *testing.T) {
	c := made(t, 1).wantOwner('v').offer('v', 'b').wantOwner('v').accept('b').wantOwner('b')
	c = c.offer('b', 'n').wantOwner('b')
	p := c.state(owner.Mark{}).Pending
	if p == nil || p.Override || !reflect.DeepEqual(p.To, party('n')) || !p.MayTransfer {
		t.Errorf("pending %+v", p)
	}
	c = c.accept('n').wantOwner('n')
	s := c.state(owner.Mark{})
	if s.Pending != nil || s.Mark.Count != 4 || !reflect.DeepEqual(s.Owner, party('n')) || !s.Since.Equal(day.Add(3*time.Hour)) {
		t.Errorf("state %+v", s)
	}
	// An offer that was taken back changes nothing.
	c.offer('n', 'x').object('n').wantOwner('n').offer('n', 'b').accept('b').wantOwner('b')
}

func TestBearerOfTheLabelBecomesOwner(t *testing.T) {
	c := made(t, 1)
	claim := owner.NewClaim(c.v.Device)
	c = c.take(c.v.Transfer(public(key('v')), key('v'), claim.Bearer(), owner.Terms{MayTransfer: true}, c.now))
	typed, err := owner.ParseClaim(strings.ToLower(claim.Code))
	if err != nil {
		t.Fatal(err)
	}
	typed.Device = c.v.Device
	c = c.take(c.v.Accept(public(key('v')), typed.Key(), c.now))
	c = c.take(c.v.Transfer(public(key('v')), typed.Key(), party('b'), owner.Terms{MayTransfer: true}, c.now))
	c = c.accept('b').wantOwner('b')

	// The code is of no use twice.
	if _, err := c.v.Transfer(public(key('v')), typed.Key(), party('x'), owner.Terms{}, c.now); !errors.Is(err, owner.ErrSignature) {
		t.Errorf("the label opens the device again: %v", err)
	}
}

func TestOverrideOfALostOwner(t *testing.T) {
	c := sold(t).override('n').wantOwner('b')
	if p := c.state(owner.Mark{}).Pending; p == nil || !p.Override || !p.NotBefore.Equal(p.IssuedAt.Add(owner.MinWait)) {
		t.Errorf("pending %+v", p)
	}
	c.later(owner.MinWait).wantOwner('b').accept('n').wantOwner('n').offer('n', 'x').accept('x').wantOwner('x')
	c.object('b').wantOwner('b').offer('b', 'x').accept('x').wantOwner('x')
	// A receiver who never answers does not hold it up.
	sold(t).offer('b', 'x').override('n').later(owner.MinWait).accept('n').wantOwner('n')
}

func TestLeaseGoesBackOnly(t *testing.T) {
	c := sold(t)
	c = c.take(c.v.Transfer(public(key('v')), key('b'), party('n'), owner.Terms{NotBefore: day.Add(48 * time.Hour)}, c.now))
	if _, err := c.v.Accept(public(key('v')), key('n'), c.now); !errors.Is(err, owner.ErrEarly) {
		t.Errorf("accepted early: %v", err)
	}
	c = c.later(48 * time.Hour).accept('n').wantOwner('n')
	if _, err := c.v.Transfer(public(key('v')), key('n'), party('x'), owner.Terms{}, c.now); !errors.Is(err, owner.ErrSealed) {
		t.Errorf("passed on: %v", err)
	}
	c.offer('n', 'b').accept('b').wantOwner('b').offer('b', 'x').accept('x').wantOwner('x')
}

// TestStatementsByTheWrongParty makes each statement with every key that must
// not make it, or when it must not be made.
func TestStatementsByTheWrongParty(t *testing.T) {
	vendor := public(key('v'))
	offered, overridden := sold(t).offer('b', 'n'), sold(t).override('n')
	resold := offered.accept('n')
	for name, c := range map[string]struct {
		do   func() (owner.Voucher, error)
		want error
	}{
		"transfer by a previous owner": {func() (owner.Voucher, error) {
			return resold.v.Transfer(vendor, key('b'), party('x'), owner.Terms{}, resold.now)
		}, owner.ErrSignature},
		"transfer by the vendor after the sale": {func() (owner.Voucher, error) {
			return resold.v.Transfer(vendor, key('v'), party('x'), owner.Terms{}, resold.now)
		}, owner.ErrSignature},
		"transfer by who was only offered it": {func() (owner.Voucher, error) {
			return offered.v.Transfer(vendor, key('n'), party('x'), owner.Terms{}, offered.now)
		}, owner.ErrState},
		"second offer while one is open": {func() (owner.Voucher, error) {
			return offered.v.Transfer(vendor, key('b'), party('x'), owner.Terms{}, offered.now)
		}, owner.ErrState},
		"acceptance by a stranger":     {func() (owner.Voucher, error) { return offered.v.Accept(vendor, key('x'), offered.now) }, owner.ErrSignature},
		"acceptance by who offers":     {func() (owner.Voucher, error) { return offered.v.Accept(vendor, key('b'), offered.now) }, owner.ErrSignature},
		"acceptance by the vendor":     {func() (owner.Voucher, error) { return offered.v.Accept(vendor, key('v'), offered.now) }, owner.ErrSignature},
		"acceptance of nothing":        {func() (owner.Voucher, error) { return resold.v.Accept(vendor, key('n'), resold.now) }, owner.ErrState},
		"acceptance after an override": {func() (owner.Voucher, error) { o := offered.override('x'); return o.v.Accept(vendor, key('n'), o.now) }, owner.ErrEarly},
		"acceptance of an offer taken back": {func() (owner.Voucher, error) {
			o := offered.object('b')
			return o.v.Accept(vendor, key('n'), o.now)
		}, owner.ErrState},
		"override with a short wait": {func() (owner.Voucher, error) {
			return resold.v.Override(key('v'), party('x'), resold.now.Add(owner.MinWait-time.Second), resold.now)
		}, owner.ErrEarly},
		"override by the owner before": {func() (owner.Voucher, error) {
			return resold.v.Override(key('b'), party('x'), resold.now.Add(owner.MinWait), resold.now)
		}, owner.ErrSignature},
		"override before its time": {func() (owner.Voucher, error) {
			return overridden.v.Accept(vendor, key('n'), day.Add(owner.MinWait))
		}, owner.ErrEarly},
		"override after an objection": {func() (owner.Voucher, error) {
			o := overridden.object('b').later(owner.MinWait)
			return o.v.Accept(vendor, key('n'), o.now)
		}, owner.ErrState},
		"override of an override": {func() (owner.Voucher, error) {
			return overridden.v.Override(key('v'), party('x'), overridden.now.Add(owner.MinWait), overridden.now)
		}, owner.ErrState},
		"offer during an override": {func() (owner.Voucher, error) {
			return overridden.v.Transfer(vendor, key('b'), party('x'), owner.Terms{}, overridden.now)
		}, owner.ErrState},
		"objection by a stranger":   {func() (owner.Voucher, error) { return overridden.v.Object(vendor, key('x'), overridden.now) }, owner.ErrSignature},
		"objection by the vendor":   {func() (owner.Voucher, error) { return overridden.v.Object(vendor, key('v'), overridden.now) }, owner.ErrSignature},
		"objection by the receiver": {func() (owner.Voucher, error) { return overridden.v.Object(vendor, key('n'), overridden.now) }, owner.ErrSignature},
		"objection to nothing":      {func() (owner.Voucher, error) { return resold.v.Object(vendor, key('n'), resold.now) }, owner.ErrState},
		"statement dated back": {func() (owner.Voucher, error) {
			back := day.Add(90 * time.Minute) // between the sale and the offer
			return offered.v.Override(key('v'), party('x'), back.Add(owner.MinWait), back)
		}, owner.ErrMalformed},
		"to a party without a name": {func() (owner.Voucher, error) {
			return resold.v.Transfer(vendor, key('n'), owner.Party{Key: public(key('x'))}, owner.Terms{}, resold.now)
		}, owner.ErrMalformed},
		"to a party without a key": {func() (owner.Voucher, error) {
			return resold.v.Transfer(vendor, key('n'), owner.Party{Name: "x"}, owner.Terms{}, resold.now)
		}, owner.ErrMalformed},
		"to no tenant's name": {func() (owner.Voucher, error) {
			return resold.v.Transfer(vendor, key('n'), owner.Party{Key: public(key('x')), Name: "x", Tenant: "A/B"}, owner.Terms{}, resold.now)
		}, owner.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := c.do(); !errors.Is(err, c.want) || v.Device != "" {
				t.Errorf("got %v and %v, want %v", v.Entries, err, c.want)
			}
		})
	}
}

// clone is deep enough to forge in.
func clone(t testing.TB, v owner.Voucher) owner.Voucher {
	t.Helper()
	c, err := owner.DecodeVoucher(v.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestForgedChains takes good vouchers apart and puts them together as they
// must not be.
func TestForgedChains(t *testing.T) {
	resold := sold(t).offer('b', 'n').accept('n')
	other := made(t, 2).offer('v', 'x').accept('x')
	late := day.Add(365 * 24 * time.Hour)
	waited := sold(t).override('x').later(owner.MinWait).accept('x')
	objected := sold(t).override('x').object('b')
	for name, c := range map[string]struct {
		of    owner.Voucher
		forge func(*owner.Voucher)
		want  error
	}{
		"forged link":           {resold.v, func(v *owner.Voucher) { v.Entries[2].To.Key = public(key('x')) }, owner.ErrSignature},
		"forged name":           {resold.v, func(v *owner.Voucher) { v.Entries[2].To.Name = "X" }, owner.ErrSignature},
		"forged terms":          {resold.v, func(v *owner.Voucher) { v.Entries[2].MayTransfer = false }, owner.ErrSignature},
		"forged signature":      {resold.v, func(v *owner.Voucher) { v.Entries[3].Signature[5] ^= 1 }, owner.ErrSignature},
		"forged model":          {resold.v, func(v *owner.Voucher) { v.Model = "vend-2" }, owner.ErrSignature},
		"forged serial":         {resold.v, func(v *owner.Voucher) { v.Serial = "S9" }, owner.ErrSignature},
		"reordered":             {resold.v, func(v *owner.Voucher) { v.Entries[0], v.Entries[2] = v.Entries[2], v.Entries[0] }, owner.ErrSignature},
		"dropped in the middle": {resold.v, func(v *owner.Voucher) { v.Entries = append(v.Entries[:1:1], v.Entries[2:]...) }, owner.ErrSignature},
		"dropped sale":          {resold.v, func(v *owner.Voucher) { v.Entries = v.Entries[2:] }, owner.ErrSignature},
		"transfer without acceptance": {resold.v, func(v *owner.Voucher) {
			v.Entries = append(v.Entries[:1:1], owner.Entry{
				Kind: owner.Offer, Prev: v.Entries[1].Prev, At: late.Unix(), To: v.Entries[2].To, NotBefore: late.Unix(), Signature: v.Entries[2].Signature,
			})
		}, owner.ErrState},
		"entries of another device": {other.v, func(v *owner.Voucher) { v.Entries = resold.v.Entries }, owner.ErrSignature},
		"another device": {resold.v, func(v *owner.Voucher) {
			v.Device, v.EKHash, v.Serial, v.Signature = other.v.Device, other.v.EKHash, other.v.Serial, other.v.Signature
		}, owner.ErrSignature},
		"another device's EK": {resold.v, func(v *owner.Voucher) { v.EKHash = other.v.EKHash }, owner.ErrMalformed},
		"offer read as override": {sold(t).offer('b', 'n').v, func(v *owner.Voucher) {
			v.Entries[2].Kind, v.Entries[2].NotBefore = owner.Override, late.Unix()
		}, owner.ErrSignature},
		"override made earlier":    {waited.v, func(v *owner.Voucher) { v.Entries[2].NotBefore -= 1000 }, owner.ErrEarly},
		"override dated back":      {waited.v, func(v *owner.Voucher) { v.Entries[2].At -= 1000 }, owner.ErrSignature},
		"objection dropped":        {objected.v, func(v *owner.Voucher) { v.Entries[3] = waited.v.Entries[3] }, nil},
		"objection passed over":    {objected.v, func(v *owner.Voucher) { v.Entries = append(v.Entries, waited.v.Entries[3]) }, owner.ErrSignature},
		"entry twice":              {resold.v, func(v *owner.Voucher) { v.Entries = append(v.Entries, v.Entries[3]) }, owner.ErrSignature},
		"unknown version":          {resold.v, func(v *owner.Voucher) { v.Version = 2 }, owner.ErrVersion},
		"no version":               {resold.v, func(v *owner.Voucher) { v.Version = 0 }, owner.ErrVersion},
		"unknown statement":        {resold.v, func(v *owner.Voucher) { v.Entries[3].Kind = 5 }, owner.ErrMalformed},
		"acceptance with terms":    {resold.v, func(v *owner.Voucher) { v.Entries[3].MayTransfer = true }, owner.ErrMalformed},
		"offer to nobody":          {resold.v, func(v *owner.Voucher) { v.Entries[2].To = nil }, owner.ErrMalformed},
		"over-long":                {resold.v, func(v *owner.Voucher) { v.Entries = slices.Repeat(v.Entries, 20) }, owner.ErrLimit},
		"not signed by the vendor": {resold.v, func(v *owner.Voucher) { v.Signature = nil }, owner.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			v := clone(t, c.of)
			if _, err := v.Verify(public(key('v')), late, owner.Mark{}); err != nil {
				t.Fatalf("before it is forged: %v", err)
			}
			c.forge(&v)
			if s, err := v.Verify(public(key('v')), late, owner.Mark{}); !errors.Is(err, c.want) {
				t.Errorf("got owner %s and %v, want %v", s.Owner.Name, err, c.want)
			}
			if c.want == nil { // two true ends of one chain: only who saw the objection knows
				if _, err := v.Verify(public(key('v')), late, objected.state(owner.Mark{}).Mark); !errors.Is(err, owner.ErrStale) {
					t.Errorf("for who saw the objection: %v, want stale", err)
				}
			}
		})
	}
	if _, err := resold.v.Verify(public(key('x')), late, owner.Mark{}); !errors.Is(err, owner.ErrSignature) {
		t.Errorf("another vendor: %v", err)
	}
	if _, err := resold.v.Verify(nil, late, owner.Mark{}); !errors.Is(err, owner.ErrSignature) {
		t.Errorf("no vendor: %v", err)
	}
	if _, err := waited.v.Verify(public(key('v')), day.Add(owner.MinWait), owner.Mark{}); !errors.Is(err, owner.ErrEarly) {
		t.Errorf("override accepted before its time by this clock: %v", err)
	}
}

// TestChainOnlyGrows shows what the mark is for: shorter chains, and others of
// any length, are valid in themselves.
func TestChainOnlyGrows(t *testing.T) {
	b := sold(t)
	offered := b.offer('b', 'n')
	n := offered.accept('n')
	seen := n.state(owner.Mark{}).Mark
	for name, c := range map[string]*chain{
		"back to the owner before": b, "acceptance stripped": offered, "back to the vendor": made(t, 1), "sold twice": b.offer('b', 'x').accept('x'),
		"sold twice, and longer": b.offer('b', 'x').accept('x').offer('x', 'n').accept('n'), "another device": made(t, 2).offer('v', 'n').accept('n'),
	} {
		c.state(owner.Mark{})
		if _, err := c.v.Verify(public(key('v')), n.now.Add(time.Hour*24), seen); !errors.Is(err, owner.ErrStale) {
			t.Errorf("%s: got %v, want stale", name, err)
		}
	}
	n.state(seen)
	n.state(b.state(owner.Mark{}).Mark)
	n.state(made(t, 1).state(owner.Mark{}).Mark)
	n.offer('n', 'x').accept('x').state(seen)
	if _, err := n.v.Verify(public(key('v')), n.now, owner.Mark{Count: 3, Head: seen.Head}); !errors.Is(err, owner.ErrStale) {
		t.Errorf("mark with another count: %v", err)
	}
	if _, err := n.v.Verify(public(key('v')), n.now, owner.Mark{Count: 4}); !errors.Is(err, owner.ErrStale) {
		t.Errorf("mark without a hash: %v", err)
	}
}

// TestFullChainStaysWithTheVendor: an owner cannot fill a chain so that no
// override fits any more.
func TestFullChainStaysWithTheVendor(t *testing.T) {
	c := sold(t)
	for len(c.v.Entries) < owner.MaxEntries-8 {
		c = c.offer('b', 'n').object('b')
	}
	if _, err := c.v.Transfer(public(key('v')), key('b'), party('n'), owner.Terms{}, c.now); !errors.Is(err, owner.ErrLimit) {
		t.Errorf("owner's entry beyond the limit: %v", err)
	}
	if n := len(c.v.Bytes()); n > owner.MaxVoucher-8*400 {
		t.Errorf("a full chain has %d bytes", n)
	}
	c.override('n').later(owner.MinWait).accept('n').wantOwner('n')
	for range 4 {
		c = c.override('n').object('b')
	}
	if _, err := c.v.Override(key('v'), party('n'), c.now.Add(owner.MinWait), c.now); !errors.Is(err, owner.ErrLimit) {
		t.Errorf("%d entries and one more: %v", len(c.v.Entries), err)
	}
}

func TestNewVoucherRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*owner.Product){
		"vendor": func(p *owner.Product) { p.Vendor = "" }, "model": func(p *owner.Product) { p.Model = "" },
		"serial": func(p *owner.Product) { p.Serial = " S" }, "order": func(p *owner.Product) { p.Order = "\x00" },
	} {
		p := product(1)
		spoil(&p)
		if _, err := owner.NewVoucher(key('v'), p, day); !errors.Is(err, owner.ErrMalformed) {
			t.Errorf("%s: got %v, want malformed", name, err)
		}
	}
}

// golden is a voucher with a statement of each kind.
func golden(t testing.TB) *chain {
	return sold(t).offer('b', 'x').object('b').override('n').later(owner.MinWait).accept('n')
}

func TestVoucherGolden(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "voucher-v1.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c := golden(t)
	if got := owner.EncodeOrder([]owner.Voucher{c.v}); !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	vouchers, err := owner.DecodeOrder(want)
	if err != nil || len(vouchers) != 1 || !reflect.DeepEqual(vouchers[0], c.v) {
		t.Errorf("got %+v and %v, want %+v", vouchers, err, c.v)
	}
	(&chain{t, vouchers[0], c.now}).wantOwner('n')
}

func TestDecodeVoucherRefuses(t *testing.T) {
	good := golden(t).v.Bytes()
	newer := bytes.Clone(good)
	newer[2] = 2 // map header, key 1, version
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":        {nil, owner.ErrMalformed},
		"cut":            {good[:len(good)-1], owner.ErrMalformed},
		"longer":         {append(bytes.Clone(good), 0), owner.ErrMalformed},
		"newer":          {newer, owner.ErrVersion},
		"newer and more": {append([]byte{newer[0] + 1}, append(newer[1:], 0x18, 40, 1)...), owner.ErrVersion},
		"unknown field":  {append([]byte{good[0] + 1}, append(bytes.Clone(good[1:]), 0x18, 40, 1)...), owner.ErrMalformed},
		"long integer":   {append([]byte{good[0], 1, 0x18, 1}, good[3:]...), owner.ErrMalformed},
		"key twice":      {append([]byte{good[0] + 1, 1, 1}, good[1:]...), owner.ErrMalformed},
		"endless":        {append([]byte{0xbf}, append(bytes.Clone(good[1:]), 0xff)...), owner.ErrMalformed},
		"too large":      {make([]byte, owner.MaxVoucher+1), owner.ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := owner.DecodeVoucher(c.b); !errors.Is(err, c.want) || v.Device != "" {
				t.Errorf("got %v and %v, want %v", v, err, c.want)
			}
		})
	}
}

func TestPartyFile(t *testing.T) {
	b, err := json.Marshal(party('b'))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := owner.ParseParty(b); err != nil || !reflect.DeepEqual(got, party('b')) {
		t.Errorf("got %v and %v", got, err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":       {nil, owner.ErrMalformed},
		"no key":        {[]byte(`{"name":"x"}`), owner.ErrMalformed},
		"short key":     {[]byte(`{"name":"x","public_key":"AAAA"}`), owner.ErrMalformed},
		"no name":       {bytes.Replace(b, []byte("Party b"), nil, 1), owner.ErrMalformed},
		"tenant":        {bytes.Replace(b, []byte("t-b"), []byte("#"), 1), owner.ErrMalformed},
		"unknown field": {bytes.Replace(b, []byte("{"), []byte(`{"may":1,`), 1), owner.ErrMalformed},
		"long":          {append(b, make([]byte, 4096)...), owner.ErrLimit},
	} {
		if p, err := owner.ParseParty(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v and %v, want %v", name, p, err, c.want)
		}
	}
}

func FuzzParseParty(f *testing.F) {
	f.Add([]byte(`{"name":"x","tenant":"t","public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := owner.ParseParty(b)
		if err != nil {
			return
		}
		c := made(t, 1)
		c.take(c.v.Transfer(public(key('v')), key('v'), p, owner.Terms{}, c.now)) // whoever is read can be offered a device
	})
}

func TestOrderFile(t *testing.T) {
	one, two := sold(t).v, made(t, 2).v
	file := owner.EncodeOrder([]owner.Voucher{one, two})
	got, err := owner.DecodeOrder(append([]byte("\r\n"), append(bytes.ReplaceAll(file, []byte("\n"), []byte("\r\n")), "\n\n"...)...))
	if err != nil || !reflect.DeepEqual(got, []owner.Voucher{one, two}) {
		t.Errorf("got %+v and %v", got, err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":      {nil, owner.ErrMalformed},
		"text before":  {append([]byte("Dear customer\n"), file...), owner.ErrMalformed},
		"text between": {slices.Concat(owner.EncodeOrder([]owner.Voucher{one}), []byte("and\n"), owner.EncodeOrder([]owner.Voucher{two})), owner.ErrMalformed},
		"text behind":  {append(bytes.Clone(file), "yours"...), owner.ErrMalformed},
		"cut":          {file[:len(file)-10], owner.ErrMalformed},
		"headers":      {bytes.Replace(file, []byte("-----\n"), []byte("-----\nA: b\n\n"), 1), owner.ErrMalformed},
		"another type": {bytes.ReplaceAll(file, []byte("VOUCHER"), []byte("LICENCE")), owner.ErrMalformed},
		"twice":        {append(bytes.Clone(file), file...), owner.ErrDuplicate},
		"no voucher":   {[]byte("-----BEGIN TILLWARD VOUCHER-----\nAAAA\n-----END TILLWARD VOUCHER-----\n"), owner.ErrMalformed},
	} {
		if v, err := owner.DecodeOrder(c.b); !errors.Is(err, c.want) || v != nil {
			t.Errorf("%s: got %v and %v, want %v", name, v, err, c.want)
		}
	}
}

func FuzzDecodeVoucher(f *testing.F) {
	f.Add(golden(f).v.Bytes())
	f.Add(made(f, 1).v.Bytes())
	for _, text := range []string{"a0", "bf0101ff", "a10102", "a2010101"} {
		b, err := hex.DecodeString(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := owner.DecodeVoucher(b)
		if err != nil {
			return
		}
		if !bytes.Equal(v.Bytes(), b) {
			t.Fatal("two forms of one voucher")
		}
		// Nobody but the holders of these keys makes a new chain.
		s, err := v.Verify(public(key('v')), day.Add(1000*time.Hour), owner.Mark{})
		if err == nil && !slices.ContainsFunc([]byte("vbn"), func(l byte) bool { return ed25519.PublicKey(s.Owner.Key).Equal(public(key(l))) }) {
			t.Fatalf("owner %v", s.Owner)
		}
	})
}

func FuzzDecodeOrder(f *testing.F) {
	f.Add(owner.EncodeOrder([]owner.Voucher{made(f, 1).v, made(f, 2).v}))
	f.Add([]byte("-----BEGIN TILLWARD VOUCHER-----\n-----END TILLWARD VOUCHER-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := owner.DecodeOrder(b)
		if err != nil {
			return
		}
		again, err := owner.DecodeOrder(owner.EncodeOrder(v))
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Fatalf("got %v and %v, want %v", again, err, v)
		}
	})
}
