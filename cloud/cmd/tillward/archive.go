package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

type auditExport struct {
	Device string `arg:"" help:"Device id, or service for the service's own trail."`
	Out    string `short:"o" required:"" help:"File to make; compressed when its name ends in .gz." placeholder:"FILE"`
	From   uint64 `help:"Number of the first entry; without it the first that is not in a segment."`
	To     uint64 `help:"Number of the last entry; without it the newest."`
}

// Help implements kong.HelpProvider.
func (auditExport) Help() string {
	return `A sealed file holds the entries with the bytes that were hashed, what the till's TPM and the service have signed
about them, and the service's signature over all of it. It can be read with jq and proven with "tillward audit
verify FILE" anywhere, without the service. What older entries were put away in shows "tillward audit segments".`
}

// Run implements the command.
func (c *auditExport) Run(ctx context.Context, o *out, api *client) error {
	if _, err := os.Stat(c.Out); err == nil {
		return usage{fmt.Errorf("-o %s is there already", c.Out)}
	}
	device := c.Device
	if device == "service" {
		device = ""
	}
	q := url.Values{}
	for name, n := range map[string]uint64{"from": c.From, "to": c.To} {
		if n != 0 {
			q.Set(name, strconv.FormatUint(n, 10))
		}
	}
	header, r, err := api.stream(ctx, http.MethodGet, trail(device)+"/export?"+q.Encode(), "", nil)
	if err != nil {
		return err
	}
	defer r.Close()
	total, _ := strconv.ParseInt(header.Get("Tillward-Entries"), 10, 64) // without it the bar is only wrong
	b := newBar(o.err, total)
	entries, size, err := saveTrail(c.Out, r, b)
	b.done()
	if err != nil {
		return fmt.Errorf("write %s: %w", c.Out, err)
	}
	return o.print(map[string]any{"file": c.Out, "entries": entries, "bytes": size},
		fmt.Sprintf("%d entries in %s; prove it with: tillward audit verify %s", entries, c.Out, c.Out))
}

// saveTrail writes the stream to a file, which is whole or not there: a sealed
// file ends in its seal.
func saveTrail(to string, r io.Reader, b *bar) (entries, size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(to), ".trail-")
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(f.Name())
	w, end := io.Writer(f), func() error { return nil }
	if strings.HasSuffix(to, ".gz") {
		z := gzip.NewWriter(f)
		w, end = z, z.Close
	}
	sealed := false
	in := bufio.NewReaderSize(r, 256<<10)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil {
			return 0, 0, errors.Join(fmt.Errorf("read what the service sends: %w", err), f.Close())
		}
		if strings.HasPrefix(string(line), `{"line":"entry"`) {
			entries++
			_, _ = b.Write(line[:1]) // the bar counts entries
		}
		sealed = strings.HasPrefix(string(line), `{"line":"seal"`)
		n, err := w.Write(line)
		size += int64(n)
		if err != nil {
			return 0, 0, errors.Join(err, f.Close())
		}
	}
	if !sealed {
		return 0, 0, errors.Join(errors.New("the service stopped before the end; try again"), f.Close())
	}
	if err := errors.Join(end(), f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return 0, 0, err
	}
	return entries, size, os.Rename(f.Name(), to)
}

type auditKeys struct{}

// Run implements the command.
func (auditKeys) Run(ctx context.Context, o *out, api *client) error {
	var k struct {
		ID  string `json:"id"`
		Key string `json:"key"`
	}
	if err := api.get(ctx, "/v1/audit/key", &k); err != nil {
		return err
	}
	if !o.json {
		fmt.Fprintf(o.err, "key %s: compare it with the service's operator, keep it, and give it to audit verify --key\n", k.ID)
	}
	return o.print(k, strings.TrimSpace(k.Key))
}

type auditVerify struct {
	What []string `arg:"" optional:"" name:"device-or-file" help:"Sealed files, or one device id; without any the service's own trail."`
	Key  []string `help:"Public key of the service, as audit keys shows it; a file. Again for each key that it has had." placeholder:"FILE"`
	AK   []string `name:"ak" help:"SHA-256 of the till's attestation key, as an earlier verification showed it. Again for each key that it has had." placeholder:"HEX"`
}

// Help implements kong.HelpProvider.
func (auditVerify) Help() string {
	return `With a sealed file (audit export, or a segment) all is checked here: no service and no network are needed. Give the
service's key by hand, or the seal is only checked against the key that the file carries itself. Of several files, each has
to begin where the one before ends, as segments of one trail do.

With a device, or nothing, the service checks the trail in its database: hashes, links and the end.

The verdict is whole, edited (a record is not what was written), gap (records are missing in the middle), truncated (at
the end or the beginning), forked (out of order, twice, a copy or a second history) or unsealed (nobody signed that this
is all). Exit codes: 0 whole, 1 not whole, 2 it cannot be read.`
}

// Run implements the command.
func (c *auditVerify) Run(ctx context.Context, o *out, api *client) error {
	if len(c.What) == 0 || len(c.What) == 1 && !sealedFile(c.What[0]) {
		if len(c.Key)+len(c.AK) > 0 {
			return usage{errors.New("--key and --ak: only a sealed file is checked against a key")}
		}
		return c.online(ctx, o, api)
	}
	by := archive.Trust{Anchor: enrol.VerifyAnchor, Keys: trust.Keyring{}}
	for _, name := range c.Key {
		key, err := readKey(name)
		if err != nil {
			return usage{fmt.Errorf("--key %s: %w", name, err)}
		}
		by.Keys[trust.KeyID(key)] = key
	}
	for _, text := range c.AK {
		var id archive.Hash
		if err := id.UnmarshalText([]byte(text)); err != nil {
			return usage{fmt.Errorf("--ak %s: %w", text, err)}
		}
		by.AKs = append(by.AKs, id)
	}
	var last *archive.Report
	failed := 0
	for _, name := range c.What {
		r, err := verifyFile(o, name, by)
		if err != nil {
			return usage{fmt.Errorf("%s: %w", name, err)}
		}
		if last != nil && r.Verdict == archive.Whole && (last.Device != r.Device || last.What != r.What || last.Head != r.After) {
			r.Verdict, r.FirstBad = archive.Gap, last.Head.Seq+1
			r.Text = fmt.Sprintf("it begins behind entry %d, and the file before ends with entry %d of %s", r.After.Seq, last.Head.Seq, orService(last.Device))
		}
		if r.Verdict != archive.Whole {
			failed++
		}
		if err := o.print(struct {
			File string `json:"file"`
			archive.Report
		}{name, r}, told(name, r)); err != nil {
			return err
		}
		last = &r
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d files are not whole", failed, len(c.What))
	}
	return nil
}

// sealedFile tells the name of a file from the id of a device.
func sealedFile(name string) bool {
	if strings.ContainsAny(name, `/\`) || strings.HasSuffix(name, ".trail") || strings.HasSuffix(name, ".trail.gz") {
		return true
	}
	fi, err := os.Stat(name)
	return err == nil && fi.Mode().IsRegular()
}

func verifyFile(o *out, name string, by archive.Trust) (archive.Report, error) {
	f, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return archive.Report{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return archive.Report{}, err
	}
	b := newBar(o.err, fi.Size())
	defer b.done()
	in := io.Reader(bufio.NewReaderSize(io.TeeReader(f, b), 64<<10))
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(in)
		if err != nil {
			return archive.Report{}, err
		}
		in = z
	}
	return archive.Verify(in, by)
}

func orService(device string) string {
	if device == "" {
		return "the service's trail"
	}
	return device
}

// told is a report for people.
func told(name string, r archive.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", name, r.Verdict)
	if r.FirstBad != 0 {
		fmt.Fprintf(&b, " at entry %d", r.FirstBad)
	}
	fmt.Fprintf(&b, ": %s\n", plainText(r.Text))
	if r.What == "" {
		return strings.TrimSpace(b.String())
	}
	fmt.Fprintf(&b, "  trail           %s, tenant %s, made %s by %s\n", plainText(orService(r.Device)), plainText(r.Tenant), r.MadeAt.Local().Format(time.DateTime), plainText(r.MadeBy))
	fmt.Fprintf(&b, "  entries         %d, %d to %d", r.Entries, r.First, r.Head.Seq)
	if r.After.Seq > 0 {
		fmt.Fprintf(&b, "; what is before entry %d lies in other files", r.After.Seq+1)
	}
	b.WriteByte('\n')
	for _, m := range r.Missing {
		how := "unexplained"
		if m.Explained {
			how = "lost with a damaged file, as the TPM of the till signed"
		}
		fmt.Fprintf(&b, "  missing         %d to %d, %s\n", m.From, m.To, how)
	}
	if r.What == archive.DeviceTrail {
		fmt.Fprintf(&b, "  TPM             %d of %d anchors hold, entries up to %d are covered\n", r.Anchors, r.AnchorsSeen, r.AnchoredTo)
		for _, id := range r.AKs {
			text, _ := id.MarshalText()
			how := "as you gave it"
			if r.AK != "given" {
				how = "as the file names it; compare it with an earlier file, or give --ak"
			}
			fmt.Fprintf(&b, "  attestation key %s, %s\n", text, how)
		}
		fmt.Fprintf(&b, "  countersigned   %d times, up to entry %d\n", r.Countersigned, r.CountersignedTo)
	}
	switch {
	case !r.Sealed:
		b.WriteString("  seal            none")
	case r.Key == "given":
		fmt.Fprintf(&b, "  seal            by key %s; checked against the key that you gave", plainText(r.KeyID))
	default:
		fmt.Fprintf(&b, "  seal            by key %s; checked ONLY against the key that the file carries itself: give --key to know who sealed it", plainText(r.KeyID))
	}
	return b.String()
}

// readKey reads an Ed25519 public key in PEM.
func readKey(name string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("it holds no public key in PEM; tillward audit keys prints it")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("it holds no Ed25519 key; tillward audit keys prints the right one")
	}
	return pub, nil
}

// online has the service check the trail in its database.
func (c *auditVerify) online(ctx context.Context, o *out, api *client) error {
	device := ""
	if len(c.What) == 1 && c.What[0] != "service" {
		device = c.What[0]
	}
	var r struct {
		OK       bool   `json:"ok"`
		Entries  uint64 `json:"entries"`
		First    uint64 `json:"first"`
		Last     uint64 `json:"last"`
		BrokenAt uint64 `json:"broken_at"`
		Text     string `json:"text"`
	}
	if err := api.get(ctx, trail(device)+"/verify", &r); err != nil {
		return err
	}
	if err := o.print(r, fmt.Sprintf("%d entries, %d to %d: %s", r.Entries, r.First, r.Last, r.Text)); err != nil {
		return err
	}
	if !r.OK {
		return fmt.Errorf("the chain is broken at entry %d", r.BrokenAt)
	}
	return nil
}

type auditSegments struct {
	Device string `arg:"" optional:"" help:"Only of this device's trail."`
	Verify bool   `help:"Have the service read each file again."`
}

type auditSegment struct {
	N       int64      `json:"n"`
	Trail   string     `json:"trail"`
	First   uint64     `json:"first"`
	Last    uint64     `json:"last"`
	Entries uint64     `json:"entries"`
	File    string     `json:"file"`
	Bytes   int64      `json:"bytes"`
	At      *time.Time `json:"at"`
	Verdict string     `json:"verdict"`
	Text    string     `json:"text"`
}

// Run implements the command.
func (c *auditSegments) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{}
	if c.Device != "" {
		q.Set("device", c.Device)
	}
	items, err := api.all(ctx, "/v1/audit/segments", q, 0)
	if err != nil {
		return err
	}
	bad := 0
	b := newBar(o.err, int64(len(items)))
	for i, raw := range items {
		if !c.Verify {
			break
		}
		var g auditSegment
		if err := json.Unmarshal(raw, &g); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if err := api.get(ctx, fmt.Sprintf("/v1/audit/segments/%d/verify", g.N), &items[i]); err != nil {
			return err
		}
		if err := json.Unmarshal(items[i], &g); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if g.Verdict != archive.Whole && g.Verdict != archive.Gap { // a gap was there before
			bad++
		}
		_, _ = b.Write([]byte{0})
	}
	b.done()
	err = list(o, items, "TRAIL\tFIRST\tLAST\tENTRIES\tBYTES\tMADE\tFILE\tVERDICT", func(g auditSegment) string {
		made, verdict := "", g.Verdict
		if g.At != nil {
			made = g.At.Local().Format("2006-01-02")
		}
		if verdict != "" && verdict != archive.Whole {
			verdict += ": " + g.Text
		}
		return tab(g.Trail, strconv.FormatUint(g.First, 10), strconv.FormatUint(g.Last, 10), strconv.FormatUint(g.Entries, 10), strconv.FormatInt(g.Bytes, 10), made, g.File, verdict)
	})
	if err == nil && bad > 0 {
		return fmt.Errorf("%d of %d segments are not what was put away", bad, len(items))
	}
	return err
}
