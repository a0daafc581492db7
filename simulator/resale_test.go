package simulator_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const resaleModel = "vend-1"

// maker makes the till of this test, and signs what says so.
var maker = ed25519.NewKeyFromSeed([]byte("the maker's key has 32 bytes too"))

// shop is an owner with a fleet service of his own.
type shop struct {
	t         *testing.T
	url       string // of the API
	token     string
	mqtt, web string // host:port that tills reach
	roots     []byte
}

// opens starts the service of a tenant; it ends with the test.
func opens(t *testing.T, tenant, dir, vendorKey, virtualCA string) *shop {
	t.Helper()
	cfg := cloud.DefaultConfig()
	cfg.DataDir, cfg.Tenant, cfg.OwnerName = filepath.Join(dir, tenant), tenant, "Shop "+tenant
	cfg.Operator.Plain, cfg.Operator.Listen = true, "127.0.0.1:0"
	cfg.Device.HTTPS, cfg.Device.MQTT, cfg.Metrics.Listen = "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.Enrol.VirtualEKRoots = []string{virtualCA}
	cfg.Enrol.Vendors = []cloud.VendorConfig{{Name: "Vend", Key: vendorKey}}
	s, err := cloud.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
	a := s.Addrs()
	token, err := os.ReadFile(filepath.Join(cfg.DataDir, "admin.token"))
	must(t, err)
	roots, err := os.ReadFile(filepath.Join(cfg.DataDir, "service-roots.pem"))
	must(t, err)
	return &shop{t, "http://" + a.Operator, strings.TrimSpace(string(token)), a.MQTT, a.HTTPS, roots}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask sends a request as the shop's administrator; body is JSON unless it is
// bytes. It returns the status, and decodes a good answer into out.
func (s *shop) ask(method, path string, body, out any) int {
	s.t.Helper()
	b, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		b, err = json.Marshal(body)
		must(s.t, err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(string(b)))
	must(s.t, err)
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	must(s.t, err)
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	must(s.t, err)
	if out != nil && resp.StatusCode/100 == 2 {
		must(s.t, json.Unmarshal(b, out))
	}
	return resp.StatusCode
}

// does is ask for what has to succeed.
func (s *shop) does(method, path string, body, out any) {
	s.t.Helper()
	if got := s.ask(method, path, body, out); got/100 != 2 {
		s.t.Fatalf("%s %s: got %d", method, path, got)
	}
}

// imports sends vouchers and returns what became of the first.
func (s *shop) imports(vouchers string) string {
	s.t.Helper()
	var all struct{ Items []struct{ Outcome string } }
	s.does("POST", "/v1/vouchers", []byte(vouchers), &all)
	return all.Items[0].Outcome
}

// standing is how a shop sees the till.
type standing struct {
	Trust     string
	Online    bool
	Ownership *struct{ State, Owner string }
}

// until waits until the shop sees the till so; found is false when he has no
// such device.
func (s *shop) until(id, what string, so func(d standing, found bool) bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var d standing
		found := s.ask("GET", "/v1/devices/"+id, nil, &d) == http.StatusOK
		if so(d, found) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: still %+v, found %t", what, d, found)
		}
	}
}

// alarms waits for an alarm of the shop that names a check.
func (s *shop) alarms(check string) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var all struct {
			Items []struct {
				Kind   string
				Detail map[string]string
			}
		}
		s.does("GET", "/v1/audit?severity=alarm", nil, &all)
		for _, e := range all.Items {
			if e.Kind == check || e.Detail["check"] == check {
				return
			}
		}
		if time.Now().After(end) {
			s.t.Fatalf("no alarm names %s: %v", check, all.Items)
		}
	}
}

func (d standing) trusted() bool { return d.Online && (d.Trust == "attested" || d.Trust == "degraded") }

// box is the till: an agent in a process of its own, and what it keeps.
type box struct {
	t     *testing.T
	agent string
	dir   string
	chip  *tpmfarm.TPM
	id    string
	ek    [sha256.Size]byte
	vend  string // file with the maker's key
	pos   string // folder of the owner's data
	cmd   *exec.Cmd
}

// starts runs the agent for a shop; it stops the one before.
func (b *box) starts(s *shop, code string) {
	b.t.Helper()
	b.stops()
	roots, file := filepath.Join(b.dir, "roots.pem"), filepath.Join(b.dir, "agent.toml")
	must(b.t, os.WriteFile(roots, s.roots, 0o600))
	must(b.t, os.WriteFile(file, fmt.Appendf(nil, `
state_dir = %q
model = %q
serial = "S-1"
reboot = []
tenant_data = [%q]
[service]
files = []
leases = []
enrol = "https://%s"
roots = %q
server_name = "localhost"
broker = %q
artifacts = "https://%s"
claim_code = %q
vendor_key = %q
[tpm]
device = "unix:%s"
event_log = ""
[update]
root = ""
apps_dir = %q
[[device]]
id = "box"
driver = "board"
`, filepath.Join(b.dir, "state"), resaleModel, b.pos, s.web, roots, s.mqtt, s.web, code, b.vend, b.chip.Socket(), filepath.Join(b.dir, "apps")), 0o600))
	log, err := os.OpenFile(filepath.Join(b.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(b.t, err)
	defer log.Close()
	b.cmd = exec.Command(b.agent, "-config", file) // #nosec G204 -- the test's own binary
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(b.t, b.cmd.Start())
}

func (b *box) stops() {
	if b.cmd != nil {
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// says waits until the agent has logged a text.
func (b *box) says(text string) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		log, err := os.ReadFile(filepath.Join(b.dir, "agent.log"))
		if must(b.t, err); strings.Contains(string(log), text) {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("the agent does not say %q:\n%s", text, log[max(0, len(log)-2000):])
		}
	}
}

// made is a till as it leaves the line.
func made(t *testing.T, farm *tpmfarm.Farm, dir, vendorKey string) *box {
	t.Helper()
	bin, err := binaries()
	must(t, err)
	b := &box{t: t, agent: filepath.Join(bin, "tillward-agent"), dir: filepath.Join(dir, "till"), vend: vendorKey, pos: filepath.Join(dir, "till", "pos")}
	must(t, os.MkdirAll(b.pos, 0o700))
	b.chip, err = farm.Start(t.Context(), filepath.Join(b.dir, "tpm"))
	must(t, err)
	t.Cleanup(b.chip.Stop)
	t.Cleanup(b.stops)
	dev, err := tpm.Open("unix:" + b.chip.Socket())
	must(t, err)
	ek, _, _, err := dev.Endorsement(t.Context())
	must(t, err)
	must(t, dev.Close())
	b.ek = sha256.Sum256(ek)
	b.id = owner.DeviceOf(b.ek)
	return b
}

// TestResale follows a till from the line to its second owner: it is claimed by
// the code of its label, sold with a voucher, hands over its trail, forgets
// the first owner, joins the second one, and is shut out at last. Each owner
// has a service of his own; all that passes between them is vouchers.
func TestResale(t *testing.T) {
	dir := t.TempDir()
	farm, err := tpmfarm.Open(t.Context(), filepath.Join(dir, "farm"))
	must(t, err)
	t.Cleanup(farm.Close)
	makerPub := maker.Public().(ed25519.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(makerPub)
	must(t, err)
	vendorKey := filepath.Join(dir, "vend.pem")
	must(t, os.WriteFile(vendorKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	a, b := opens(t, "a", dir, vendorKey, farm.CA()), opens(t, "b", dir, vendorKey, farm.CA())
	till := made(t, farm, dir, vendorKey)
	device := "/v1/devices/" + till.id

	// From the line: listed, with a label; the voucher is made out to its bearer.
	label := owner.NewClaim(till.id)
	manifest, err := owner.SignManifest(maker, owner.Manifest{Vendor: "Vend", Batch: "1", MadeAt: time.Now(), Entries: []owner.Listed{
		{EKHash: hex.EncodeToString(till.ek[:]), Model: resaleModel, Serial: "S-1", ClaimHash: label.Hash()},
	}})
	must(t, err)
	a.does("POST", "/v1/manifests", manifest, nil)
	v, err := owner.NewVoucher(maker, owner.Product{Vendor: "Vend", EKHash: till.ek, Model: resaleModel, Serial: "S-1"}, time.Now())
	must(t, err)
	v, err = v.Transfer(makerPub, maker, label.Bearer(), owner.Terms{MayTransfer: true}, time.Now())
	must(t, err)
	a.does("POST", "/v1/orders", owner.EncodeOrder([]owner.Voucher{v}), nil)

	// A code that is not on the label claims nothing; the one that is does.
	till.starts(a, owner.NewClaim(till.id).Code)
	a.alarms("enrol.claim")
	if got := a.ask("GET", device, nil, nil); got != http.StatusNotFound {
		t.Errorf("with a wrong code: got %d", got)
	}
	till.starts(a, label.Code)
	a.until(till.id, "joins a", func(d standing, _ bool) bool {
		return d.trusted() && d.Ownership != nil && d.Ownership.Owner == "Shop a"
	})
	must(t, os.WriteFile(filepath.Join(till.pos, "receipts"), []byte("of the first owner"), 0o600))

	// Sold: a offers, b accepts, and a lets go when the signed voucher is back.
	var next map[string]any
	b.does("GET", "/v1/tenant", nil, &next)
	delete(next, "$schema")
	var title struct{ Voucher string }
	a.does("POST", device+"/transfer", map[string]any{"to": next, "may_transfer": true}, &title)
	offered := title.Voucher
	if got := b.imports(offered); got != "accepted" {
		t.Fatalf("b: got %q", got)
	}
	b.does("GET", device+"/voucher", nil, &title)
	if got := a.imports(title.Voucher); got != "releasing" {
		t.Fatalf("a: got %q", got)
	}
	a.until(till.id, "leaves a", func(_ standing, found bool) bool { return !found })
	till.says("nobody's now")
	if left, err := os.ReadDir(till.pos); err != nil || len(left) != 0 {
		t.Errorf("of the first owner %d files are left, %v", len(left), err)
	}
	var former struct {
		Items []struct {
			ID   string
			Head uint64 `json:"audit_head"`
		}
	}
	a.does("GET", "/v1/devices?former=true", nil, &former)
	var chain struct {
		OK      bool
		Entries uint64
	}
	a.does("GET", "/v1/devices/"+former.Items[0].ID+"/audit/verify", nil, &chain)
	if !chain.OK || chain.Entries < 5 || chain.Entries != former.Items[0].Head {
		t.Errorf("a keeps %+v of the trail of %+v, want it whole", chain, former)
	}
	var trail struct{ Items []struct{ Kind string } }
	a.does("GET", "/v1/devices/"+former.Items[0].ID+"/audit?limit=10", nil, &trail)
	if !strings.Contains(fmt.Sprint(trail), "owner.relinquish") {
		t.Errorf("the trail ends with %v", trail)
	}

	// It does not come back to a, whatever a shows; it joins b.
	if got := a.ask("POST", "/v1/vouchers", []byte(offered), nil); got != http.StatusConflict {
		t.Errorf("a imports its old voucher: got %d", got)
	}
	till.starts(a, label.Code)
	a.alarms("enrol.owner")
	till.starts(b, "")
	b.until(till.id, "joins b", func(d standing, _ bool) bool {
		return d.trusted() && d.Ownership != nil && d.Ownership.Owner == "Shop b"
	})

	// Shut out, at once.
	began := time.Now()
	b.does("POST", device+"/revoke", map[string]any{"reason": "stolen"}, nil)
	b.until(till.id, "is cut off", func(d standing, _ bool) bool { return !d.Online })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s to cut off, want less than 2s", took)
	}
	b.alarms("identity.revoked")
}
