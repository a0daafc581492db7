package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/tillward/tillward/provisioning/owner"
)

// maxFile is how large a file the service takes, in bytes.
const maxFile = 64 << 20

// file reads what is to be sent; - is standard input.
func file(path string, limit int64) ([]byte, error) {
	in := io.ReadCloser(os.Stdin)
	if path != "-" {
		var err error
		if in, err = os.Open(path); err != nil { // #nosec G304 -- the operator names the file
			return nil, usage{err}
		}
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = usage{fmt.Errorf("%s: more than %d bytes", path, limit)}
	}
	return b, err
}

// replace writes a file whole or not at all.
func replace(path string, b []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".tillward-*")
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	if err = errors.Join(err, t.Chmod(0o644), t.Sync(), t.Close()); err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		_ = os.Remove(t.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// party is whom a voucher names, as the API has it.
type party struct {
	Name   string `json:"name"`
	Tenant string `json:"tenant,omitempty"`
	Key    []byte `json:"key"`
}

type title struct {
	Device    string     `json:"device"`
	Serial    string     `json:"serial"`
	State     string     `json:"state"`
	Owner     party      `json:"owner"`
	Since     *time.Time `json:"since"`
	Entries   int        `json:"entries"`
	Next      *party     `json:"next"`
	Override  bool       `json:"override"`
	NotBefore *time.Time `json:"not_before"`
	Deadline  *time.Time `json:"deadline"`
	Voucher   string     `json:"voucher"`
}

func (t title) String() string {
	s := fmt.Sprintf("%s  serial %s  owner %s since %s  %s, %d entries", t.Device, t.Serial, t.Owner.Name, stamp(t.Since), t.State, t.Entries)
	switch {
	case t.Next == nil:
	case t.Override:
		s += fmt.Sprintf("\nthe vendor gives it to %s; object until %s with tillward device object", t.Next.Name, stamp(t.Deadline))
	default:
		s += fmt.Sprintf("\noffered to %s from %s on", t.Next.Name, stamp(t.NotBefore))
	}
	return s
}

// show prints a voucher, and writes it to a file when one is named.
func show(o *out, raw json.RawMessage, path string) error {
	var t title
	if err := json.Unmarshal(raw, &t); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	text := t.String()
	if path != "" {
		if err := replace(path, []byte(t.Voucher)); err != nil {
			return err
		}
		text += "\nvoucher in " + path
	}
	return o.print(raw, text)
}

type deviceVoucher struct {
	Device string `arg:"" help:"Device id."`
	Out    string `help:"Write the voucher to this file." placeholder:"FILE"`
}

// Run implements the command.
func (c *deviceVoucher) Run(ctx context.Context, o *out, api *client) error {
	var t json.RawMessage
	if err := api.get(ctx, devicePath(c.Device, "/voucher"), &t); err != nil {
		return err
	}
	return show(o, t, c.Out)
}

type deviceTransfer struct {
	Device     string    `arg:"" help:"Device id."`
	To         string    `required:"" help:"Party file of the next owner; tillward tenant show writes it there." placeholder:"FILE"`
	NotBefore  time.Time `help:"When it may be accepted, e.g. 2026-12-31T00:00:00Z; at once by default."`
	ReturnOnly bool      `help:"The next owner may only give the device back, as of a lease."`
	Out        string    `required:"" help:"Where to write the voucher for the next owner." placeholder:"FILE"`
}

// Run implements the command.
func (c *deviceTransfer) Run(ctx context.Context, o *out, api *client) error {
	b, err := file(c.To, 4096)
	if err != nil {
		return err
	}
	to, err := owner.ParseParty(b)
	if err != nil {
		return usage{fmt.Errorf("%s: %w", c.To, err)}
	}
	in := map[string]any{"to": party{to.Name, to.Tenant, to.Key}, "may_transfer": !c.ReturnOnly}
	if !c.NotBefore.IsZero() {
		in["not_before"] = c.NotBefore
	}
	var t json.RawMessage
	if err := api.post(ctx, devicePath(c.Device, "/transfer"), in, &t); err != nil {
		return err
	}
	return show(o, t, c.Out)
}

type deviceObject struct {
	because

	Device string `arg:"" help:"Device id."`
}

// Run implements the command.
func (c *deviceObject) Run(ctx context.Context, o *out, api *client) error {
	var t json.RawMessage
	if err := api.post(ctx, devicePath(c.Device, "/transfer/object"), map[string]string{"reason": c.Reason}, &t); err != nil {
		return err
	}
	return show(o, t, "")
}

type tenantCmd struct {
	Show tenantShow `cmd:"" help:"Print the party file that who offers you devices needs."`
}

type tenantShow struct{}

// Run implements the command.
func (tenantShow) Run(ctx context.Context, o *out, api *client) error {
	var p party
	if err := api.get(ctx, "/v1/tenant", &p); err != nil {
		return err
	}
	// A party file, in both forms: it goes to a file as it is.
	return json.NewEncoder(o.w).Encode(owner.Party{Key: p.Key, Name: p.Name, Tenant: p.Tenant})
}

type claimCmd struct {
	Code    claimCode    `cmd:"" help:"Claim a device with the code on its label, read from a file or standard input."`
	Waiting claimWaiting `cmd:"" help:"Claim a device that waits, without a code; where the service allows it."`
	Order   claimOrder   `cmd:"" help:"Claim all devices that a vendor's manifests list for an order."`
}

// place is where a claimed device is to stand.
type place struct {
	Site  string `help:"Site of the device."`
	Group string `help:"Group of the device."`
}

func (p place) in(m map[string]string) map[string]string {
	for k, v := range map[string]string{"site": p.Site, "group": p.Group} {
		if v != "" {
			m[k] = v
		}
	}
	return m
}

type claimCode struct {
	place

	File   string `help:"File with the code, or what the label's QR code holds." default:"-" placeholder:"FILE"`
	Device string `help:"Device id; without it, and with a code alone, every device that waits is tried."`
}

// Run implements the command.
func (c *claimCode) Run(ctx context.Context, o *out, api *client) error {
	if c.File == "-" && term.IsTerminal(int(os.Stdin.Fd())) { // #nosec G115 -- a descriptor
		fmt.Fprintln(o.err, "code, as on the label, then Ctrl-D:")
	}
	b, err := file(c.File, 256)
	if err != nil {
		return err
	}
	in := c.in(map[string]string{"code": string(bytes.TrimSpace(b))})
	if c.Device != "" {
		in["device"] = c.Device
	}
	var got struct {
		Device string `json:"device"`
	}
	if err := api.post(ctx, "/v1/claims", in, &got); err != nil {
		return err
	}
	return o.print(got, got.Device+" is yours; it joins when it asks again")
}

type claimWaiting struct {
	place

	Device string `arg:"" help:"Device id, as waiting list shows it."`
}

// Run implements the command.
func (c *claimWaiting) Run(ctx context.Context, o *out, api *client) error {
	if err := api.post(ctx, "/v1/claims/device", c.in(map[string]string{"device": c.Device}), nil); err != nil {
		return err
	}
	return o.print(map[string]string{"device": c.Device}, c.Device+" is yours; it joins when it asks again")
}

type claimOrder struct {
	Vendor string `arg:"" help:"Name of the vendor, as in his manifests."`
	Order  string `arg:"" help:"Number of the order."`
}

// Run implements the command.
func (c *claimOrder) Run(ctx context.Context, o *out, api *client) error {
	var got struct {
		Devices int `json:"devices"`
	}
	if err := api.post(ctx, "/v1/claims/order", map[string]string{"vendor": c.Vendor, "order": c.Order}, &got); err != nil {
		return err
	}
	return o.print(got, fmt.Sprintf("%d devices are yours", got.Devices))
}

type waitingCmd struct {
	List waitingList `cmd:"" help:"List genuine devices that asked and that nobody owns."`
}

type waitingList struct{}

// Run implements the command.
func (waitingList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/waiting", url.Values{"limit": {"1000"}}, 0)
	if err != nil {
		return err
	}
	type waiting struct {
		Device  string     `json:"device"`
		Tier    string     `json:"tier"`
		Model   string     `json:"model"`
		Serial  string     `json:"serial"`
		From    string     `json:"from"`
		LastAt  *time.Time `json:"last_at"`
		Listed  bool       `json:"listed"`
		Claimed bool       `json:"claimed"`
	}
	return list(o, items, "DEVICE\tSERIAL\tMODEL\tTIER\tFROM\tASKED\tCLAIM", func(w waiting) string {
		claim := "by the service's policy"
		switch {
		case w.Claimed:
			claim = "claimed"
		case w.Listed:
			claim = "by the code on its label"
		}
		return tab(w.Device, w.Serial, w.Model, w.Tier, w.From, ago(w.LastAt), claim)
	})
}

type manifestCmd struct {
	Import manifestImport `cmd:"" help:"Import a vendor's signed batch manifest."`
}

type manifestImport struct {
	File string `arg:"" help:"The manifest; - is standard input."`
}

// Run implements the command.
func (c *manifestImport) Run(ctx context.Context, o *out, api *client) error {
	b, err := file(c.File, maxFile)
	if err != nil {
		return err
	}
	var got struct {
		Vendor  string `json:"vendor"`
		Batch   string `json:"batch"`
		Order   string `json:"order"`
		Devices int    `json:"devices"`
		Added   int    `json:"added"`
	}
	if err := api.do(ctx, http.MethodPost, "/v1/manifests", "application/json", bytes.NewReader(b), &got); err != nil {
		return err
	}
	return o.print(got, fmt.Sprintf("batch %s of %s: %d devices, %d new", got.Batch, got.Vendor, got.Devices, got.Added))
}

type orderCmd struct {
	Import orderImport `cmd:"" help:"Import an order file: vouchers that are offered to you are accepted."`
}

type voucherCmd struct {
	Import voucherImport `cmd:"" help:"Import vouchers: accept what is offered to you, let go of what its next owner accepted."`
}

type (
	orderImport   struct{ vouchers }
	voucherImport struct{ vouchers }
)

type vouchers struct {
	File string `arg:"" help:"Vouchers, one PEM block after the other; - is standard input."`
}

// Run implements the command.
func (c *orderImport) Run(ctx context.Context, o *out, api *client) error {
	return c.send(ctx, o, api, "/v1/orders")
}

// Run implements the command.
func (c *voucherImport) Run(ctx context.Context, o *out, api *client) error {
	return c.send(ctx, o, api, "/v1/vouchers")
}

func (c *vouchers) send(ctx context.Context, o *out, api *client, path string) error {
	b, err := file(c.File, maxFile)
	if err != nil {
		return err
	}
	var p page
	if err := api.do(ctx, http.MethodPost, path, "application/x-pem-file", bytes.NewReader(b), &p); err != nil {
		return err
	}
	type imported struct {
		Device  string `json:"device"`
		Serial  string `json:"serial"`
		Outcome string `json:"outcome"`
		Text    string `json:"text"`
	}
	var refused []string
	for _, i := range p.Items {
		var v imported
		if err := json.Unmarshal(i, &v); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if v.Outcome == "refused" {
			refused = append(refused, v.Serial)
		}
	}
	if err := list(o, p.Items, "DEVICE\tSERIAL\tOUTCOME\tDETAIL", func(v imported) string { return tab(v.Device, v.Serial, v.Outcome, v.Text) }); err != nil {
		return err
	}
	if len(refused) > 0 {
		return fmt.Errorf("refused: serial %s", strings.Join(refused, ", "))
	}
	return nil
}
