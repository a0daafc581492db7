package main

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/provisioning/trust"
)

type voucherCmd struct {
	Party    voucherParty    `cmd:"" help:"Write the party file that a buyer sends to who shall offer him devices."`
	Create   voucherCreate   `cmd:"" help:"Make the vouchers of a batch, an order file."`
	Transfer voucherTransfer `cmd:"" help:"Offer devices to their next owner."`
	Accept   voucherAccept   `cmd:"" help:"Accept what is offered: from then on the devices are yours."`
	Override voucherOverride `cmd:"" help:"Give devices of a lost owner to another, after a wait of at least 14 days. Only the vendor can."`
	Object   voucherObject   `cmd:"" help:"Void an open override, or take an offer back."`
	Show     voucherShow     `cmd:"" help:"Check vouchers and tell whose the devices are."`
}

const maxOrder = 512 << 20 // bytes of an order file

// chainFiles are what every step on a chain needs.
type chainFiles struct {
	In     string `required:"" help:"Order file, or one voucher." placeholder:"FILE"`
	Vendor string `required:"" help:"The vendor's public key: a PEM or party file." placeholder:"FILE"`
	Out    string `required:"" help:"Where to write the vouchers with their new entry; may be the file read." placeholder:"FILE"`
}

// each extends all vouchers of a file, or none.
func (c *chainFiles) each(o *out, done string, extend func(v owner.Voucher, vendor ed25519.PublicKey, now time.Time) (owner.Voucher, error)) error {
	vendor, err := readPublic(c.Vendor)
	if err != nil {
		return err
	}
	vouchers, err := readOrder(c.In)
	if err != nil {
		return err
	}
	now := time.Now()
	b := newBar(os.Stderr, len(vouchers))
	for i, v := range vouchers {
		if vouchers[i], err = extend(v, vendor, now); err != nil {
			b.done()
			return fmt.Errorf("%s: serial %s: %w", c.In, v.Serial, err)
		}
		b.step()
	}
	b.done()
	if err := replace(c.Out, owner.EncodeOrder(vouchers)); err != nil {
		return err
	}
	return o.print(map[string]any{"file": c.Out, "devices": len(vouchers)}, "%s  %d devices %s", c.Out, len(vouchers), done)
}

type voucherParty struct {
	Key    string `required:"" help:"The owner's key; its public half is written." placeholder:"FILE"`
	Name   string `required:"" help:"Name of the owner."`
	Tenant string `help:"The owner's tenant of the fleet service."`
	Out    string `required:"" help:"Where to write the party file." placeholder:"FILE"`
}

// Run implements the command.
func (c *voucherParty) Run(o *out) error {
	pub, err := readPublic(c.Key)
	if err != nil {
		return err
	}
	p := owner.Party{Key: pub, Name: c.Name, Tenant: c.Tenant}
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode party: %w", err)
	}
	if _, err := owner.ParseParty(b); err != nil {
		return usage{err}
	}
	if err := createAll([]newFile{{c.Out, 0o644, func(w io.Writer) error { _, err := w.Write(append(b, '\n')); return err }}}); err != nil {
		return err
	}
	return o.print(p, "%s  %s, key %s", c.Out, p.Name, trust.KeyID(pub))
}

type voucherCreate struct {
	Manifest   string   `required:"" help:"The batch." placeholder:"FILE"`
	Key        string   `required:"" help:"The vendor's key, which signed the manifest too." placeholder:"FILE"`
	To         string   `xor:"to" help:"Offer the devices to this party." placeholder:"FILE"`
	Claims     string   `xor:"to" help:"Offer each device to who holds its label: claim codes as factory manifest wrote them." placeholder:"FILE"`
	Serial     []string `help:"Only these devices."`
	ReturnOnly bool     `help:"The next owner may only give the devices back, as of a lease."`
	Out        string   `required:"" help:"Where to write the vouchers." placeholder:"FILE"`
}

// Run implements the command.
func (c *voucherCreate) Run(o *out) error {
	if c.Claims != "" && c.ReturnOnly {
		return usage{errors.New("--return-only does not go with --claims: who holds the label has to pass the device on, to himself")}
	}
	m, err := openManifest(c.Manifest, c.Key)
	if err != nil {
		return err
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	for _, s := range c.Serial {
		if !slices.ContainsFunc(m.Entries, func(e owner.Listed) bool { return e.Serial == s }) {
			return usage{fmt.Errorf("--serial %s: not in %s", s, c.Manifest)}
		}
	}
	var to owner.Party
	if c.To != "" {
		if to, err = readParty(c.To); err != nil {
			return err
		}
	}
	var claims map[string]owner.Claim
	if c.Claims != "" {
		if claims, err = claimsByDevice(c.Claims); err != nil {
			return err
		}
	}
	now := time.Now()
	var vouchers []owner.Voucher
	b := newBar(os.Stderr, len(m.Entries))
	defer b.done()
	for _, e := range m.Entries {
		b.step()
		if len(c.Serial) > 0 && !slices.Contains(c.Serial, e.Serial) {
			continue
		}
		ek, err := hex.DecodeString(e.EKHash)
		if err != nil {
			return fmt.Errorf("serial %s: %w", e.Serial, err)
		}
		v, err := owner.NewVoucher(key, owner.Product{Vendor: m.Vendor, EKHash: [32]byte(ek), Model: e.Model, Serial: e.Serial, Order: m.Order}, now)
		if err != nil {
			return fmt.Errorf("serial %s: %w", e.Serial, err)
		}
		if claims != nil {
			claim, ok := claims[e.Device]
			if !ok || !claim.Matches(e.ClaimHash) {
				return fmt.Errorf("%s: the code of serial %s is not that of the manifest", c.Claims, e.Serial)
			}
			to = claim.Bearer()
		}
		if to.Key != nil {
			if v, err = v.Transfer(key.Public().(ed25519.PublicKey), key, to, owner.Terms{MayTransfer: !c.ReturnOnly}, now); err != nil {
				return fmt.Errorf("serial %s: %w", e.Serial, err)
			}
		}
		vouchers = append(vouchers, v)
	}
	file := owner.EncodeOrder(vouchers)
	if err := createAll([]newFile{{c.Out, 0o644, func(w io.Writer) error { _, err := w.Write(file); return err }}}); err != nil {
		return err
	}
	whose := "still the vendor's"
	if to.Key != nil {
		whose = "offered to the " + to.Name
		if c.To != "" {
			whose = "offered to " + to.Name
		}
	}
	return o.print(map[string]any{"file": c.Out, "devices": len(vouchers)}, "%s  %d devices, %s", c.Out, len(vouchers), whose)
}

type voucherTransfer struct {
	chainFiles

	Key        string    `required:"" help:"The present owner's key." placeholder:"FILE"`
	To         string    `required:"" help:"Party file of the next owner." placeholder:"FILE"`
	NotBefore  time.Time `help:"When it may be accepted, e.g. 2026-12-31T00:00:00Z; at once by default."`
	ReturnOnly bool      `help:"The next owner may only give the devices back, as of a lease."`
}

// Run implements the command.
func (c *voucherTransfer) Run(o *out) error {
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	to, err := readParty(c.To)
	if err != nil {
		return err
	}
	return c.each(o, "offered to "+to.Name, func(v owner.Voucher, vendor ed25519.PublicKey, now time.Time) (owner.Voucher, error) {
		return v.Transfer(vendor, key, to, owner.Terms{NotBefore: c.NotBefore, MayTransfer: !c.ReturnOnly}, now)
	})
}

type voucherAccept struct {
	chainFiles

	Key string `required:"" help:"The next owner's key." placeholder:"FILE"`
}

// Run implements the command.
func (c *voucherAccept) Run(o *out) error {
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	return c.each(o, "accepted", func(v owner.Voucher, vendor ed25519.PublicKey, now time.Time) (owner.Voucher, error) {
		return v.Accept(vendor, key, now)
	})
}

type voucherOverride struct {
	In   string        `required:"" help:"Order file, or one voucher." placeholder:"FILE"`
	Key  string        `required:"" help:"The vendor's key." placeholder:"FILE"`
	To   string        `required:"" help:"Party file of the next owner." placeholder:"FILE"`
	Wait time.Duration `default:"336h" help:"How long the present owner can object; 336h, 14 days, at least."`
	Out  string        `required:"" help:"Where to write the vouchers with their new entry; may be the file read." placeholder:"FILE"`
}

// Run implements the command.
func (c *voucherOverride) Run(o *out) error {
	if c.Wait < owner.MinWait {
		return usage{fmt.Errorf("--wait %s: %s at least", c.Wait, owner.MinWait)}
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	to, err := readParty(c.To)
	if err != nil {
		return err
	}
	files := chainFiles{In: c.In, Vendor: c.Key, Out: c.Out}
	effective := time.Now().Add(c.Wait).Truncate(time.Second).Add(time.Second)
	return files.each(o, fmt.Sprintf("for %s from %s on, unless their owner objects", to.Name, effective.UTC().Format(time.RFC3339)),
		func(v owner.Voucher, _ ed25519.PublicKey, now time.Time) (owner.Voucher, error) {
			return v.Override(key, to, effective, now)
		})
}

type voucherObject struct {
	chainFiles

	Key string `required:"" help:"The present owner's key." placeholder:"FILE"`
}

// Run implements the command.
func (c *voucherObject) Run(o *out) error {
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	return c.each(o, "stay with their owner", func(v owner.Voucher, vendor ed25519.PublicKey, now time.Time) (owner.Voucher, error) {
		return v.Object(vendor, key, now)
	})
}

type voucherShow struct {
	In     string `required:"" help:"Order file, or one voucher." placeholder:"FILE"`
	Vendor string `required:"" help:"The vendor's public key: a PEM or party file." placeholder:"FILE"`
	Seen   string `help:"The same vouchers as they were seen before: what goes back behind them, or contradicts them, is refused." placeholder:"FILE"`
}

// shown is a voucher as machines read it.
type shown struct {
	Device      string        `json:"device"`
	EKHash      string        `json:"ek_sha256"`
	Vendor      string        `json:"vendor"`
	Model       string        `json:"model"`
	Serial      string        `json:"serial"`
	Order       string        `json:"order,omitempty"`
	Owner       owner.Party   `json:"owner"`
	Since       time.Time     `json:"since"`
	MayTransfer bool          `json:"may_transfer"`
	Pending     *shownPending `json:"pending,omitempty"`
	Entries     int           `json:"entries"`
}

type shownPending struct {
	Kind      string      `json:"kind"`
	To        owner.Party `json:"to"`
	NotBefore time.Time   `json:"not_before"`
}

// Run implements the command.
func (c *voucherShow) Run(o *out) error {
	vendor, err := readPublic(c.Vendor)
	if err != nil {
		return err
	}
	vouchers, err := readOrder(c.In)
	if err != nil {
		return err
	}
	now := time.Now()
	seen := map[string]owner.Mark{}
	if c.Seen != "" {
		before, err := readOrder(c.Seen)
		if err != nil {
			return err
		}
		for _, v := range before {
			s, err := v.Verify(vendor, now, owner.Mark{})
			if err != nil {
				return fmt.Errorf("%s: serial %s: %w", c.Seen, v.Serial, err)
			}
			seen[v.Device] = s.Mark
		}
	}
	all := make([]shown, 0, len(vouchers))
	for _, v := range vouchers {
		s, err := v.Verify(vendor, now, seen[v.Device])
		if err != nil {
			return fmt.Errorf("%s: serial %s: %w", c.In, v.Serial, err)
		}
		line := shown{
			Device: v.Device, EKHash: hex.EncodeToString(v.EKHash), Vendor: v.Vendor, Model: v.Model, Serial: v.Serial, Order: v.Order,
			Owner: s.Owner, Since: s.Since, MayTransfer: s.MayTransfer, Entries: s.Mark.Count,
		}
		if p := s.Pending; p != nil {
			line.Pending = &shownPending{Kind: owner.Offer.String(), To: p.To, NotBefore: p.NotBefore}
			if p.Override {
				line.Pending.Kind = owner.Override.String()
			}
		}
		all = append(all, line)
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(all)
	}
	for _, l := range all {
		fmt.Fprintf(o.w, "%s  serial %s  owner %s since %s", l.Device, l.Serial, l.Owner.Name, l.Since.Format(time.RFC3339))
		if l.Pending != nil {
			fmt.Fprintf(o.w, "  %s to %s from %s on", l.Pending.Kind, l.Pending.To.Name, l.Pending.NotBefore.Format(time.RFC3339))
		}
		fmt.Fprintln(o.w)
	}
	return nil
}

func readOrder(path string) ([]owner.Voucher, error) {
	b, err := readFile(path, maxOrder)
	if err != nil {
		return nil, err
	}
	vouchers, err := owner.DecodeOrder(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return vouchers, nil
}

func readParty(path string) (owner.Party, error) {
	b, err := readFile(path, 64<<10)
	if err != nil {
		return owner.Party{}, err
	}
	p, err := owner.ParseParty(b)
	if err != nil {
		return owner.Party{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// replace writes a file whole or not at all, over the one that is there.
func replace(path string, b []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".tillward-*")
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	if err = errors.Join(err, t.Chmod(fs.FileMode(0o644)), t.Sync(), t.Close()); err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		_ = os.Remove(t.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
