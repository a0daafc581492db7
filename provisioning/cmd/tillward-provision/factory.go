package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/provisioning/owner/label"
	"github.com/tillward/tillward/provisioning/trust"
)

type factoryCmd struct {
	Read     factoryRead     `cmd:"" help:"Read the TPM of the device at hand into a file of the line."`
	Manifest factoryManifest `cmd:"" help:"Sign a batch, and make the claim codes and labels of its devices."`
	Label    factoryLabel    `cmd:"" help:"Print labels again."`
	Verify   factoryVerify   `cmd:"" help:"Check a signed manifest, and codes against it."`
}

// unit is one device as the line knows it; a line of the line's file.
type unit struct {
	EKPublic []byte    `json:"ek_public,omitempty"` // TPMT_PUBLIC
	EKHash   string    `json:"ek_sha256"`
	Model    string    `json:"model"`
	Serial   string    `json:"serial"`
	ReadAt   time.Time `json:"read_at,omitzero"`

	where string // file:line
}

type factoryRead struct {
	TPM    string        `name:"tpm" default:"/dev/tpmrm0" help:"The TPM; unix:PATH for one in software." placeholder:"DEVICE"`
	Out    string        `required:"" help:"File of the line: one device a line is added to it." placeholder:"FILE"`
	Model  string        `required:"" help:"Model of the device."`
	Serial string        `help:"Its serial number; that of its firmware (DMI) by default."`
	Wait   time.Duration `default:"1m" help:"How long the TPM may take."`
}

// dmiSerial is where the firmware says the serial number.
const dmiSerial = "/sys/class/dmi/id/product_serial"

// Run implements the command.
func (c *factoryRead) Run(o *out) error {
	if c.Serial == "" {
		b, err := os.ReadFile(dmiSerial)
		if c.Serial = strings.TrimSpace(string(b)); err != nil || c.Serial == "" {
			return usage{errors.New("the firmware tells no serial number: give it with --serial, from the device's plate say")}
		}
	}
	known, err := readBatch([]string{c.Out})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Wait)
	defer cancel()
	chip, err := tpm.Open(c.TPM)
	if err != nil {
		return err
	}
	defer chip.Close()
	public, cert, _, err := chip.Endorsement(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(public)
	u := unit{EKPublic: public, EKHash: hex.EncodeToString(sum[:]), Model: c.Model, Serial: c.Serial, ReadAt: time.Now().UTC().Truncate(time.Second)}
	if err := u.check(); err != nil {
		return usage{err}
	}
	u.where = "device at hand"
	if err := twice(append(known, u)); err != nil {
		return err
	}
	line, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("encode device: %w", err)
	}
	f, err := os.OpenFile(c.Out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) // #nosec G302 G304 -- public by nature, and the caller's file
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n')) // one write: stations may share the file
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", c.Out, err)
	}
	device, tier := owner.DeviceOf(sum), "its maker's certificate"
	if cert == nil {
		tier = "no certificate of its maker, so that only the manifest speaks for it"
	}
	return o.print(map[string]any{"device": device, "ek_sha256": u.EKHash, "serial": u.Serial, "certificate": cert != nil},
		"%s  serial %s, device %s, %s", c.Out, u.Serial, device, tier)
}

type factoryManifest struct {
	In     []string `required:"" help:"Files of the line, or CSV with the columns ek_sha256 or ek_public (base64), model and serial." placeholder:"FILE"`
	Key    string   `required:"" help:"The vendor's batch key." placeholder:"FILE"`
	Vendor string   `required:"" help:"Name of the vendor."`
	Batch  string   `required:"" help:"Name of the batch."`
	Order  string   `help:"Number of the order it is made for."`
	Out    string   `required:"" help:"Where to write the signed manifest." placeholder:"FILE"`
	Claims string   `help:"Where to write the claim codes, as CSV: a secret." placeholder:"FILE"`
	Labels string   `help:"Where to write the labels, as HTML to print: a secret." placeholder:"FILE"`
}

// Run implements the command.
func (c *factoryManifest) Run(o *out) error {
	if c.Labels != "" && c.Claims == "" {
		return usage{errors.New("--labels needs --claims: lost labels are printed again from there")}
	}
	units, err := readBatch(c.In)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return usage{err}
		}
		return err
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	m := owner.Manifest{Vendor: c.Vendor, Batch: c.Batch, Order: c.Order, MadeAt: time.Now()}
	var labels []label.Label
	for _, u := range units {
		e := owner.Listed{EKHash: u.EKHash, Model: u.Model, Serial: u.Serial}
		if c.Claims != "" {
			claim := owner.NewClaim(deviceOf(u.EKHash))
			e.ClaimHash = claim.Hash()
			labels = append(labels, label.Label{Vendor: c.Vendor, Model: u.Model, Serial: u.Serial, Claim: claim})
		}
		m.Entries = append(m.Entries, e)
	}
	b, err := owner.SignManifest(key, m)
	if err != nil {
		return err
	}
	if _, err := owner.OpenManifest(key.Public().(ed25519.PublicKey), b); err != nil {
		return fmt.Errorf("check what was signed: %w", err)
	}
	files := []newFile{{c.Out, 0o644, func(w io.Writer) error { _, err := w.Write(b); return err }}}
	if c.Claims != "" {
		files = append(files, newFile{c.Claims, 0o600, func(w io.Writer) error { return writeClaims(w, labels) }})
	}
	if c.Labels != "" {
		files = append(files, newFile{c.Labels, 0o600, func(w io.Writer) error {
			return label.Sheet(w, c.Vendor+" "+c.Batch, counted(os.Stderr, labels))
		}})
	}
	if err := createAll(files); err != nil {
		return err
	}
	return o.print(map[string]any{"file": c.Out, "devices": len(units), "key_id": trust.KeyID(key.Public().(ed25519.PublicKey))},
		"%s  %d devices, %d claim codes", c.Out, len(units), len(labels))
}

type factoryLabel struct {
	Claims string   `required:"" help:"The claim codes of the batch." placeholder:"FILE"`
	Vendor string   `required:"" help:"Name of the vendor."`
	Serial []string `help:"Only these devices."`
	Out    string   `required:"" help:"Where to write the labels, as HTML to print: a secret." placeholder:"FILE"`
}

// Run implements the command.
func (c *factoryLabel) Run(o *out) error {
	labels, err := readClaims(c.Claims)
	if err != nil {
		return err
	}
	bySerial := make(map[string]label.Label, len(labels))
	for i := range labels {
		labels[i].Vendor = c.Vendor
		bySerial[labels[i].Serial] = labels[i]
	}
	if len(c.Serial) > 0 {
		labels = nil
	}
	for _, s := range c.Serial {
		l, ok := bySerial[s]
		if !ok {
			return usage{fmt.Errorf("--serial %s: not in %s", s, c.Claims)}
		}
		labels = append(labels, l)
	}
	err = createAll([]newFile{{c.Out, 0o600, func(w io.Writer) error { return label.Sheet(w, c.Vendor, counted(os.Stderr, labels)) }}})
	if err != nil {
		return err
	}
	return o.print(map[string]any{"file": c.Out, "labels": len(labels)}, "%s  %d labels", c.Out, len(labels))
}

type factoryVerify struct {
	In     string `required:"" help:"The signed manifest." placeholder:"FILE"`
	Key    string `required:"" help:"The vendor's key; its public half is enough." placeholder:"FILE"`
	Claims string `help:"Check that these claim codes are those of the manifest." placeholder:"FILE"`
}

// Run implements the command.
func (c *factoryVerify) Run(o *out) error {
	m, err := openManifest(c.In, c.Key)
	if err != nil {
		return err
	}
	if c.Claims != "" {
		if err := matchClaims(m, c.Claims); err != nil {
			return err
		}
	}
	return o.print(m, "%s verifies: %d devices of %s, batch %s, made %s", c.In, len(m.Entries), m.Vendor, m.Batch, m.MadeAt.Format(time.DateOnly))
}

func openManifest(file, key string) (owner.Manifest, error) {
	b, err := readFile(file, owner.MaxManifest)
	if err != nil {
		return owner.Manifest{}, err
	}
	pub, err := readPublic(key)
	if err != nil {
		return owner.Manifest{}, err
	}
	m, err := owner.OpenManifest(pub, b)
	if err != nil {
		return owner.Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// matchClaims wants one right code for each device that has one.
func matchClaims(m owner.Manifest, file string) error {
	claims, err := claimsByDevice(file)
	if err != nil {
		return err
	}
	for _, e := range m.Entries {
		c, ok := claims[e.Device]
		if ok != (e.ClaimHash != "") || ok && !c.Matches(e.ClaimHash) {
			return fmt.Errorf("%s: the code of serial %s is not that of the manifest", file, e.Serial)
		}
		delete(claims, e.Device)
	}
	if len(claims) > 0 {
		return fmt.Errorf("%s: has codes of %d devices that are not in the manifest", file, len(claims))
	}
	return nil
}

func claimsByDevice(file string) (map[string]owner.Claim, error) {
	labels, err := readClaims(file)
	if err != nil {
		return nil, err
	}
	out := make(map[string]owner.Claim, len(labels))
	for _, l := range labels {
		out[l.Claim.Device] = l.Claim
	}
	return out, nil
}

var claimColumns = []string{"serial", "model", "device", "claim"}

func writeClaims(w io.Writer, labels []label.Label) error {
	c := csv.NewWriter(w)
	_ = c.Write(claimColumns) // Error tells below
	for _, l := range labels {
		_ = c.Write([]string{l.Serial, l.Model, l.Claim.Device, l.Claim.Code})
	}
	c.Flush()
	return c.Error()
}

func readClaims(file string) ([]label.Label, error) {
	f, err := os.Open(file) // #nosec G304 -- the caller's file
	if err != nil {
		return nil, usage{err}
	}
	defer f.Close()
	var out []label.Label
	var bad badLines
	err = eachRow(file, f, claimColumns, &bad, func(_ string, row map[string]string) error {
		c, err := owner.ParseClaim(row["claim"])
		c.Device = row["device"]
		out = append(out, label.Label{Model: row["model"], Serial: row["serial"], Claim: c})
		return err
	})
	if err := errors.Join(err, bad.err()); err != nil {
		return nil, err
	}
	return out, nil
}

func deviceOf(ekHash string) string {
	b, err := hex.DecodeString(ekHash)
	if err != nil || len(b) != sha256.Size { // Listed.Check says what is wrong
		return ""
	}
	return owner.DeviceOf([sha256.Size]byte(b))
}

// newFile is a file to be made, which must not be there.
type newFile struct {
	path  string
	mode  fs.FileMode
	write func(io.Writer) error
}

// createAll makes all files or none. None replaces another: a second run would
// make other codes than those already on labels.
func createAll(files []newFile) (err error) {
	var temps []string
	defer func() {
		for _, t := range temps {
			_ = os.Remove(t)
		}
	}()
	for _, f := range files {
		if _, err := os.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
			return usage{fmt.Errorf("%s is there already: nothing was written; move it away or name another", f.path)}
		}
		t, err := os.CreateTemp(filepath.Dir(f.path), ".tillward-*")
		if err != nil {
			return err
		}
		temps = append(temps, t.Name())
		if err := errors.Join(t.Chmod(f.mode), f.write(t), t.Sync(), t.Close()); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	for i, f := range files {
		if err := os.Link(temps[i], f.path); err != nil { // unlike a rename it replaces nothing
			for _, done := range files[:i] {
				_ = os.Remove(done.path)
			}
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}

// counted shows on a terminal how many labels are drawn.
func counted(w *os.File, labels []label.Label) iter.Seq[label.Label] {
	return func(yield func(label.Label) bool) {
		b := newBar(w, len(labels))
		defer b.done()
		for _, l := range labels {
			if !yield(l) {
				return
			}
			b.step()
		}
	}
}
