package export_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

// authority signs certificates into files of a folder.
type authority struct {
	dir, name string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), name: name}
	a.cert, a.key = a.sign(t, name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

func (a *authority) ca() string { return a.file(a.name) }

// issue returns the files of a certificate and its key.
func (a *authority) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	a.sign(t, name, &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	return a.file(name), a.file(name + "-key")
}

func (a *authority) sign(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(t, err)
	made, err := x509.ParseCertificate(der)
	must(t, err)
	k, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(a.file(name+"-key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}), 0o600))
	return made, key
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// daemon is a real syslog receiver that writes each message as a line of raw
// into a file.
type daemon struct {
	name, addr string
	raw        string // the file
	log        string // what the program says
	start      func() *exec.Cmd
	run        *exec.Cmd
}

// up starts the receiver and waits until it listens.
func (d *daemon) up(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(d.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	d.run = d.start()
	d.run.Stdout, d.run.Stderr = log, log
	must(t, d.run.Start())
	until(t, d.name+" listens", func() bool {
		c, err := net.Dial("tcp", d.addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// down ends the receiver as a restart does.
func (d *daemon) down(t *testing.T) {
	t.Helper()
	if d.run == nil {
		return
	}
	must(t, d.run.Process.Signal(syscall.SIGTERM))
	ended := make(chan struct{})
	go func() {
		_ = d.run.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		_ = d.run.Process.Kill()
		<-ended
		t.Errorf("%s did not end", d.name)
	}
	d.run = nil
}

func (d *daemon) lines(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(d.raw)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 90 s", what)
		}
	}
}

// freePort is one that nobody had a moment ago: these programs cannot be given
// port 0. They listen on an address of this test's own, so that no other
// test's connection takes it.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("none of %v is here: nothing was proved", names)
	}
	t.Skipf("none of %v is here; `make test` brings them", names)
	return ""
}

// rsyslog is Debian's rsyslogd, which asks for a client certificate of a.
func rsyslog(t *testing.T, a *authority) *daemon {
	t.Helper()
	bin, dir, addr := program(t, "rsyslogd", "/usr/sbin/rsyslogd"), t.TempDir(), freeAddr(t)
	cert, key := a.issue(t, "rsyslog.test")
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	d := &daemon{name: "rsyslog", addr: addr, raw: filepath.Join(dir, "raw"), log: filepath.Join(dir, "log")}
	conf := fmt.Sprintf(`
global(workDirectory=%[1]q maxMessageSize="16k" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile=%[2]q
       defaultNetstreamDriverCertFile=%[3]q defaultNetstreamDriverKeyFile=%[4]q shutdown.queue.doubleSize="on")
main_queue(queue.size="100000" queue.timeoutShutdown="20000")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="raw" type="string" string="%%rawmsg-after-pri%%\n")
input(type="imtcp" address=%[5]q port=%[6]q)
action(type="omfile" file=%[7]q template="raw")
`, dir, a.ca(), cert, key, host, port, d.raw)
	must(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600))
	d.start = func() *exec.Cmd {
		return exec.Command(bin, "-n", "-f", filepath.Join(dir, "conf"), "-i", filepath.Join(dir, "pid"))
	}
	t.Cleanup(func() { d.down(t) })
	return d
}

// books is a store with a trail.
type books struct {
	*store.Store
	dir string
}

func newBooks(t *testing.T) *books {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	return &books{st, dir}
}

// fill adds n entries to the service's trail.
func (b *books) fill(t *testing.T, n int) {
	t.Helper()
	work, failed := make(chan int), make(chan error, 8)
	for range cap(failed) { // many, so that they share commits
		go func() {
			var err error
			for i := range work {
				if err == nil {
					err = b.Audit(context.Background(), fleet.AuditEvent{
						Tenant: "main", Kind: "device.changed", Severity: "info", Actor: "anna", Subject: "till-" + strconv.Itoa(i), Detail: map[string]string{"label": "Lane \"7\" = [left] | a\\b", "site": "berlin"},
					})
				}
			}
			failed <- err
		}()
	}
	for i := range n {
		work <- i
	}
	close(work)
	for range cap(failed) {
		must(t, <-failed)
	}
}

// exporting runs an exporter until the test ends or stop is called.
func exporting(t *testing.T, b *books, sinks ...export.Sink) (x *export.Exporter, stop func()) {
	t.Helper()
	x, err := export.New(export.Options{Store: b, Tenant: "main", Sinks: sinks, Version: "1.2.3", Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	return x, running(t, x)
}

// running runs x until the test ends or stop is called.
func running(t *testing.T, x *export.Exporter) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = x.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// state is that of the one sink there is.
func state(t *testing.T, x *export.Exporter) fleet.ExportState {
	t.Helper()
	all, err := x.States(t.Context())
	must(t, err)
	return all[0]
}

var number = regexp.MustCompile(` n="([0-9]+)"`)

// counted checks that the lines have each number from 1 to want, that what came
// twice is the same, and returns how many came twice.
func counted(t *testing.T, lines []string, want int) (doubles int) {
	t.Helper()
	seen := map[int]string{}
	for _, l := range lines {
		m := number.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("a line without number: %.200q", l)
		}
		n, err := strconv.Atoi(m[1])
		must(t, err)
		if was, ok := seen[n]; ok {
			if doubles++; was != l {
				t.Errorf("number %d came twice, and differs:\n%.300s\n%.300s", n, was, l)
			}
		}
		seen[n] = l
	}
	for n := 1; n <= want; n++ {
		if seen[n] == "" {
			t.Fatalf("entry %d of %d did not arrive (%d did)", n, want, len(seen))
		}
	}
	if len(seen) != want {
		t.Errorf("%d numbers arrived, want %d", len(seen), want)
	}
	return doubles
}

// forget deletes rows as retention does.
func (b *books) forget(t *testing.T, from, to int) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(b.dir, "tillward.db")+"?_busy_timeout=5000")
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `DROP TRIGGER IF EXISTS audit_kept`)
	must(t, err)
	_, err = db.ExecContext(t.Context(), `DELETE FROM audit WHERE n BETWEEN ? AND ?`, from, to)
	must(t, err)
}
