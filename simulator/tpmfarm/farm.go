// Package tpmfarm makes software TPMs for tills and tests: one swtpm process
// each, on a unix socket, with its state in the till's folder and an EK
// certificate from an authority of the farm, where a TPM maker would put it.
// Firmware boots a till: it extends the TPM's registers and writes the event
// log. Image makes what such a till boots, too small to run.
//
// The package exports more than eight names: tests make boots and images of
// parts that they change.
//
// A new state folder means fresh random seeds, so every TPM has its own EK; an
// existing one is the same TPM after a power cycle. The processes die with the
// one that started them. Only the simulator and tests may import it.
package tpmfarm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator/child"
)

// ErrNoSwtpm means that the swtpm program is not installed.
var ErrNoSwtpm = errors.New("swtpm is not installed: apt-get install swtpm")

// Farm makes TPMs whose EK certificates share one authority.
type Farm struct {
	// RSA gives TPMs that are made from now on an RSA-2048 endorsement key
	// instead of a P-256 one; it takes a fifth of a second longer.
	RSA bool

	// P384 gives TPMs that are made from now on a P-384 endorsement key of the
	// high range; RSA is not looked at then.
	P384 bool

	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	mu   sync.Mutex
	tpms []*TPM
}

// Open returns a farm that keeps its authority in dir: the same folder is the
// same authority again.
func Open(_ context.Context, dir string) (*Farm, error) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		return nil, ErrNoSwtpm
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("TPM farm: %w", err)
	}
	f := &Farm{dir: dir}
	err := f.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = f.found()
	}
	if err != nil {
		return nil, fmt.Errorf("TPM farm: %w", err)
	}
	return f, nil
}

// load reads the authority of an earlier run.
func (f *Farm) load() error {
	pair, err := tls.LoadX509KeyPair(f.CA(), f.keyFile())
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%s holds a %T", f.keyFile(), pair.PrivateKey)
	}
	f.key, f.cert = key, pair.Leaf
	return nil
}

// found makes a new authority.
func (f *Farm) found() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Tillward simulator EK authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	if f.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	f.key = key
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.keyFile(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(f.CA(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func (f *Farm) keyFile() string { return filepath.Join(f.dir, "ek-authority.key") }

// CA is the PEM file with the authority's certificate.
func (f *Farm) CA() string { return filepath.Join(f.dir, "ek-authority.pem") }

// Close stops every TPM.
func (f *Farm) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tpms {
		t.Stop()
	}
}

// Start starts a TPM with its state in dir. A new one gets an EK certificate:
// P-256 at NV index 0x01C0000A, RSA-2048 at 0x01C00002, both low range, or
// P-384 of the high range at 0x01C00016.
func (f *Farm) Start(ctx context.Context, dir string) (*TPM, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("TPM state: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("TPM state: %w", err)
	}
	t := &TPM{dir: dir, socket: filepath.Join(dir, "s")}
	if len(t.socket) > 100 {
		// A socket's path has 108 bytes at most [unix(7)].
		sum := sha256.Sum256([]byte(dir))
		t.socket = filepath.Join(os.TempDir(), fmt.Sprintf("tillward-tpm-%x", sum[:8]))
	}
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	mark := filepath.Join(dir, "provisioned")
	if _, err := os.Stat(mark); err != nil {
		err := f.provision(t.socket)
		if err == nil {
			err = os.WriteFile(mark, nil, 0o600)
		}
		if err != nil {
			t.Stop()
			return nil, fmt.Errorf("provision TPM: %w", err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tpms = append(f.tpms, t)
	return t, nil
}

// certify issues the EK certificate a maker would: critical SAN with the
// maker's directory name, EKU tcg-kp-EKCertificate [TCG EK Credential Profile
// 2.5, 3.2].
func (f *Farm) certify(ek any) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	san, err := tpmName()
	if err != nil {
		return nil, err
	}
	usage := x509.KeyUsageKeyAgreement
	if _, ok := ek.(*rsa.PublicKey); ok {
		usage = x509.KeyUsageKeyEncipherment
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: f.cert.NotAfter,
		KeyUsage: usage, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	return x509.CreateCertificate(rand.Reader, tmpl, f.cert, ek, f.key)
}

// tpmName is the SAN of a TPM: manufacturer, model and version as a directory
// name.
func tpmName() ([]byte, error) {
	attr := func(n int, v string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, n}, Value: v}}
	}
	name, err := asn1.Marshal(pkix.RDNSequence{attr(1, "id:00001014"), attr(2, "swtpm"), attr(3, "id:20191023")})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
}

// TPM is one swtpm process.
type TPM struct {
	dir    string
	socket string

	mu  sync.Mutex
	now *child.Child // nil: off
}

// Socket is the path an agent opens with unix:PATH.
func (t *TPM) Socket() string { return t.socket }

func (t *TPM) start(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, err := dialTPM(t.socket); err == nil {
		_ = c.Close()
		return fmt.Errorf("start swtpm: the TPM in %s runs already, end the other run first", t.dir)
	}
	_ = os.Remove(t.socket)
	// Not CommandContext: a till's TPM outlives the call that started it.
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.dir, // #nosec G204 -- fixed program
		"--server", "type=unixio,path="+t.socket, "--flags", "not-need-init,startup-clear")
	var said bytes.Buffer
	cmd.Stderr = &said
	c, err := child.Start(cmd)
	if err != nil {
		return err
	}
	t.now = c
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = c.Until(ctx, func() error {
		if !answers(t.socket) {
			return errors.New("it does not answer")
		}
		return nil
	})
	if err != nil {
		t.stop()
		return fmt.Errorf("TPM in %s: %w: %s", t.dir, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// Restart is a power cycle: no orderly shutdown, volatile state is lost, the
// reset count grows.
func (t *TPM) Restart(ctx context.Context) error {
	t.Stop()
	return t.start(ctx)
}

// Stop ends the process and waits for it.
func (t *TPM) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
}

func (t *TPM) stop() {
	if t.now == nil {
		return
	}
	t.now.Kill()
	_ = t.now.Wait()
	t.now = nil
	_ = os.Remove(t.socket)
}

// dialTPM connects to a software TPM.
func dialTPM(socket string) (net.Conn, error) { return net.DialTimeout("unix", socket, 5*time.Second) }
