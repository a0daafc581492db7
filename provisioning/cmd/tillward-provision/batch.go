package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/term"

	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/provisioning/trust"
)

const (
	maxLine   = 16 << 10 // bytes of one line of a batch
	maxTold   = 20       // bad lines that are named
	columnEK  = "ek_public"
	columnSum = "ek_sha256"
)

// badLines gathers what is wrong with a batch, so that one run tells all.
type badLines struct {
	told []error
	more int
}

func (b *badLines) add(where string, err error) {
	if len(b.told) == maxTold {
		b.more++
		return
	}
	b.told = append(b.told, fmt.Errorf("%s: %w", where, err))
}

func (b *badLines) err() error {
	switch {
	case len(b.told) == 0:
		return nil
	case b.more > 0:
		b.told = append(b.told, fmt.Errorf("and %d more bad lines", b.more))
	}
	return errors.Join(b.told...)
}

// readBatch reads files of the line and CSV files. Each bad line is named; no
// device may be there twice, in one file or in two.
func readBatch(files []string) ([]unit, error) {
	var units []unit
	var bad badLines
	for _, file := range files {
		f, err := os.Open(file) // #nosec G304 -- the caller's file
		if err != nil {
			return nil, err
		}
		found, err := readUnits(file, f, &bad)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		units = append(units, found...)
		if len(units) > owner.MaxListed {
			return nil, fmt.Errorf("more than %d devices: sign several batches", owner.MaxListed)
		}
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return units, twice(units)
}

func readUnits(name string, r io.Reader, bad *badLines) ([]unit, error) {
	b := bufio.NewReader(r)
	start, _ := b.Peek(1)
	if len(start) == 0 { // a line that has only begun
		return nil, nil
	}
	if start[0] == '{' {
		return readLine(name, b, bad)
	}
	var units []unit
	err := eachRow(name, b, []string{"model", "serial"}, bad, func(where string, row map[string]string) error {
		u := unit{EKHash: strings.ToLower(row[columnSum]), Model: row["model"], Serial: row["serial"], where: where}
		if text := row[columnEK]; text != "" {
			public, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return fmt.Errorf("%s is not base64", columnEK)
			}
			u.EKPublic = public
		}
		if err := u.check(); err != nil {
			return err
		}
		units = append(units, u)
		return nil
	})
	return units, err
}

// readLine reads what factory read wrote, a JSON object a line.
func readLine(name string, r io.Reader, bad *badLines) ([]unit, error) {
	var units []unit
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	n := 0
	for s.Scan() && len(units) <= owner.MaxListed {
		n++
		where := fmt.Sprintf("%s:%d", name, n)
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		d := json.NewDecoder(bytes.NewReader(s.Bytes()))
		d.DisallowUnknownFields()
		var u unit
		if err := d.Decode(&u); err != nil {
			bad.add(where, err)
			continue
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			bad.add(where, errors.New("more than one device in a line"))
			continue
		}
		u.where = where
		if err := u.check(); err != nil {
			bad.add(where, err)
			continue
		}
		units = append(units, u)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	return units, nil
}

// check sets the hash of the EK and asks the manifest's own rules.
func (u *unit) check() error {
	if len(u.EKPublic) > 0 {
		sum, err := ekHash(u.EKPublic)
		if err != nil {
			return err
		}
		if u.EKHash != "" && u.EKHash != sum {
			return fmt.Errorf("%s is not the hash of %s", columnSum, columnEK)
		}
		u.EKHash = sum
	}
	return owner.Listed{EKHash: u.EKHash, Device: deviceOf(u.EKHash), Model: u.Model, Serial: u.Serial}.Check()
}

// twice names the lines of a device, or a serial number, that is there twice.
func twice(units []unit) error {
	var bad badLines
	eks, serials := make(map[string]string, len(units)), make(map[string]string, len(units))
	for _, u := range units {
		if first, ok := eks[u.EKHash]; ok {
			bad.add(u.where, fmt.Errorf("this TPM is at %s already", first))
		} else if first, ok := serials[u.Serial]; ok {
			bad.add(u.where, fmt.Errorf("serial %s is at %s already", u.Serial, first))
		}
		eks[u.EKHash], serials[u.Serial] = u.where, u.where
	}
	return bad.err()
}

// ekHash returns what device ids are made from: the SHA-256 of a TPMT_PUBLIC
// whose coordinates have their full length. It takes a TPM2B_PUBLIC too, which
// is what tpm2-tools write.
func ekHash(public []byte) (string, error) {
	if len(public) > 2 && int(public[0])<<8|int(public[1]) == len(public)-2 {
		public = public[2:]
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*area), public) {
		return "", fmt.Errorf("%s is not the public area of a key", columnEK)
	}
	if area.Type == tpm2.TPMAlgECC {
		point, err := area.Unique.ECC()
		if err != nil {
			return "", fmt.Errorf("%s: %w", columnEK, err)
		}
		size := 32
		if p, err := area.Parameters.ECCDetail(); err == nil && p.CurveID == tpm2.TPMECCNistP384 {
			size = 48
		}
		for _, c := range []*[]byte{&point.X.Buffer, &point.Y.Buffer} {
			if len(*c) > size {
				return "", fmt.Errorf("%s: coordinate of %d bytes", columnEK, len(*c))
			}
			*c = slices.Concat(make([]byte, size-len(*c)), *c)
		}
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point)
		public = tpm2.Marshal(*area)
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:]), nil
}

// eachRow reads CSV with a line of column names. Bad rows are gathered, and so
// is what row says of the others.
func eachRow(name string, r io.Reader, columns []string, bad *badLines, row func(where string, row map[string]string) error) error {
	c := csv.NewReader(r)
	c.TrimLeadingSpace = true
	names, err := c.Read()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	names[0] = strings.TrimPrefix(names[0], "\ufeff") // of spreadsheets
	for i := range names {
		names[i] = strings.ToLower(strings.TrimSpace(names[i]))
		if slices.Contains(names[:i], names[i]) {
			return fmt.Errorf("%s:1: column %q is there twice", name, names[i])
		}
	}
	for _, want := range columns {
		if !slices.Contains(names, want) {
			return fmt.Errorf("%s:1: no column %q", name, want)
		}
	}
	for range owner.MaxListed + 1 {
		fields, err := c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if parse, ok := errors.AsType[*csv.ParseError](err); ok {
			bad.add(fmt.Sprintf("%s:%d", name, parse.Line), parse.Err)
			if errors.Is(err, csv.ErrFieldCount) {
				continue
			}
			return nil // the rest cannot be told apart
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		line, _ := c.FieldPos(0)
		where := fmt.Sprintf("%s:%d", name, line)
		values := make(map[string]string, len(names))
		for i, f := range fields {
			values[names[i]] = strings.TrimSpace(f)
		}
		if err := row(where, values); err != nil {
			bad.add(where, err)
		}
	}
	return fmt.Errorf("%s: more than %d devices: sign several batches", name, owner.MaxListed)
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the caller's file
	if err != nil {
		return nil, usage{err}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, nil
}

// readPublic reads a public key out of a party file, a PEM file of it, or the
// file of the private key.
func readPublic(path string) (ed25519.PublicKey, error) {
	b, err := readFile(path, 64<<10)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		p, err := owner.ParseParty(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return p.Key, nil
	}
	if block, _ := pem.Decode(b); block != nil && block.Type == "PUBLIC KEY" {
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		pub, ok := k.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("%s: is %T, an Ed25519 key is needed", path, k)
		}
		return pub, nil
	}
	key, err := trust.ReadKey(path)
	if err != nil {
		return nil, err
	}
	return key.Public().(ed25519.PublicKey), nil
}

// bar shows on a terminal how far long work is.
type bar struct {
	w        io.Writer
	n, total int
	start    time.Time
	last     time.Time
}

func newBar(f *os.File, total int) *bar {
	b := &bar{total: max(total, 1), start: time.Now()}
	if fi, err := f.Stat(); err == nil && fi.Mode()&fs.ModeCharDevice != 0 && term.IsTerminal(int(f.Fd())) { // #nosec G115 -- a descriptor
		b.w = f
	}
	return b
}

func (b *bar) step() {
	b.n++
	if b.w == nil || time.Since(b.start) < 300*time.Millisecond || time.Since(b.last) < 100*time.Millisecond {
		return
	}
	b.last = time.Now()
	done := min(b.n*40/b.total, 40)
	fmt.Fprintf(b.w, "\r[%s%s] %d of %d", strings.Repeat("#", done), strings.Repeat(".", 40-done), b.n, b.total)
}

func (b *bar) done() {
	if !b.last.IsZero() {
		fmt.Fprintf(b.w, "\r%70s\r", "")
	}
}
