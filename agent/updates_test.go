package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const pos = "ops/" + tenant + "/pos"

// application publishes a version of a POS application whose health command
// ends with a code.
func (f *fleet) application(version, code string) {
	f.t.Helper()
	dir := f.t.TempDir()
	must(f.t, os.WriteFile(filepath.Join(dir, "tillward.json"), []byte(`{"health":["./check"]}`), 0o600))
	must(f.t, os.WriteFile(filepath.Join(dir, "check"), []byte("#!/bin/sh\necho version "+version+"; exit "+code+"\n"), 0o700)) // #nosec G306 -- a program
	file := filepath.Join(f.t.TempDir(), "tree.tar")
	w, err := os.Create(file)
	must(f.t, err)
	must(f.t, tree.Pack(w, dir))
	must(f.t, w.Close())
	f.release(pos+"/"+version+"/tree.tar", file, trust.Custom{Class: "app", Version: version})
}

// configuration publishes settings.
func (f *fleet) configuration(name, version, settings string) {
	f.t.Helper()
	file := filepath.Join(f.t.TempDir(), "settings.json")
	must(f.t, os.WriteFile(file, []byte(settings), 0o600))
	f.release("ops/"+tenant+"/"+name+"/"+version+"/settings.json", file, trust.Custom{Class: "config", Version: version})
}

func (f *fleet) release(path, file string, c trust.Custom) {
	f.t.Helper()
	must(f.t, f.repo.Add([]trust.NewTarget{{Path: path, File: file, Custom: c}}, f.keys))
}

// offerOf offers a release of any class, and waits for the end of it.
func (f *fleet) offerOf(class, component, version string, change func(*wire.OfferOrder)) wire.ResultReport {
	f.t.Helper()
	o := wire.OfferOrder{
		V: wire.Version, Execution: "x-" + class + "-" + version, Attempt: 1, Tenant: tenant, Device: f.device(), Class: class, Version: version,
		Target: component + "/" + version, IssuedAt: time.Now().UnixMilli(), NotAfter: time.Now().Add(time.Hour).UnixMilli(),
	}
	if change != nil {
		change(&o)
	}
	payload, err := wire.Encode(&o)
	must(f.t, err)
	f.send(o.Device, wire.DownOffer, wire.OrderOffer, payload)
	return f.ended(o.Execution)
}

func (f *fleet) ended(execution string) (got wire.ResultReport) {
	f.t.Helper()
	f.until(execution+" does not end", func() bool {
		for _, r := range f.results {
			if r.ID == execution && slices.Contains([]string{"SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED"}, r.State) {
				got = r
				return true
			}
		}
		return false
	})
	return got
}

// states lists what was reported of an execution.
func (f *fleet) states(execution string) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.results {
		if s := strings.TrimSpace(r.State + " " + r.Reason); r.ID == execution && (len(out) == 0 || out[len(out)-1] != s) {
			out = append(out, s)
		}
	}
	return out
}

// connected is a box that is a member and trusted.
func (f *fleet) connected() *box {
	f.t.Helper()
	b := f.box()
	b.cfg.Update.CheckFor = agent.Duration{Duration: time.Second}
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	return b
}

// An application and a configuration come to a box over the air like an agent
// does, and what is not well is taken back.
func TestApplicationAndConfiguration(t *testing.T) {
	f := newFleet(t)
	f.application("1.0.0", "0")
	f.application("1.1.0", "3")
	f.configuration("till", "1.0.0", `{"label":"till seven","poll_s":30}`)
	f.configuration("till", "1.1.0", `{"label":"till eight","colour":"red"}`)
	b := f.connected()
	if r := f.offerOf("app", pos, "1.0.0", nil); r.State != "SUCCEEDED" || r.Wire == 0 || r.Attempt != 1 || r.Step < 5 {
		t.Fatalf("got %+v", r)
	}
	want := []string{"OFFERED", "DOWNLOADING", "STAGED", "INSTALLING", "INSTALLED", "CHECKING", "SUCCEEDED"}
	if got := f.states("x-app-1.0.0"); !slices.Equal(got, want) {
		t.Errorf("states %q, want %q", got, want)
	}
	if r := f.offerOf("app", pos, "1.1.0", nil); r.State != "ROLLED_BACK" || r.Reason != "unhealthy" || r.From != "1.0.0" {
		t.Errorf("got %+v", r)
	}
	if to, err := os.Readlink(filepath.Join(b.cfg.Update.AppsDir, "pos", "current")); err != nil || !strings.Contains(to, "1.0.0") {
		t.Errorf("current leads to %q, %v", to, err)
	}
	if r := f.offerOf("config", "ops/"+tenant+"/till", "1.1.0", nil); r.State != "REJECTED" || r.Reason != "incompatible" {
		t.Errorf("got %+v", r)
	}
	if r := f.offerOf("config", "ops/"+tenant+"/till", "1.0.0", nil); r.State != "SUCCEEDED" {
		t.Errorf("got %+v", r)
	}
	f.until("the state does not say what runs", func() bool {
		return f.state.Label == "till seven" && f.state.Execution == "" && slices.ContainsFunc(f.state.Installed, func(c wire.Installed) bool {
			return c.Component == pos && c.Version == "1.0.0" && !c.Trial && c.Hash != ""
		}) && slices.ContainsFunc(f.state.Installed, func(c wire.Installed) bool { return c.Component == "agent" && c.Slot == "golden" }) && f.state.FreeMiB > 0
	})
}

// What a box must not have it refuses by name.
func TestPolicyOfTheBox(t *testing.T) {
	f := newFleet(t)
	file := filepath.Join(t.TempDir(), "content")
	must(t, os.WriteFile(file, []byte(`{"label":"x"}`), 0o600))
	f.release("ops/others/till/1.0.0/settings.json", file, trust.Custom{Class: "config", Version: "1.0.0"})
	f.release("ops/"+tenant+"/a/1.0.0/settings.json", file, trust.Custom{Class: "config", Version: "1.0.0", Models: []string{"box-1"}})
	f.release("ops/"+tenant+"/b/1.0.0/settings.json", file, trust.Custom{Class: "config", Version: "1.0.0", Requires: map[string]string{"agent": "1.0.1"}})
	f.release("ops/"+tenant+"/c/1.0.0/settings.json", file, trust.Custom{Class: "config", Version: "1.0.0", Withdrawn: true})
	f.release("ops/"+tenant+"/d/1.0.0/settings.json", file, trust.Custom{Class: "app", Version: "1.0.0"})
	f.connected()
	for component, want := range map[string]string{
		"ops/others/till": "policy", "ops/" + tenant + "/a": "incompatible", "ops/" + tenant + "/b": "requires", "ops/" + tenant + "/c": "withdrawn",
		"ops/" + tenant + "/d": "incompatible",
	} {
		r := f.offerOf("config", component, "1.0.0", func(o *wire.OfferOrder) { o.Execution = "x-" + strings.ReplaceAll(component, "/", "-") })
		if r.State != "REJECTED" || r.Reason != want {
			t.Errorf("%s: got %+v, want %s", component, r, want)
		}
	}
	if r := f.offerOf("script", "ops/"+tenant+"/s", "1.0.0", nil); r.State != "FAILED" || r.Reason != "no-handler" {
		t.Errorf("a class that this box does not install: got %+v", r)
	}
}

// A health command that leaves something behind, or talks without end, holds
// nobody up.
func TestHealthCommandIsBounded(t *testing.T) {
	for script, well := range map[string]bool{
		"sleep 600 & exit 0": true, "sleep 600 & exit 1": false, "head -c 10000000 /dev/zero; exit 0": true, "echo no paper; exit 3": false,
	} {
		began := time.Now()
		said := agent.Ask(t.Context(), "/bin/sh", "-c", script)
		if (said == "") != well || len(said) > wire.MaxText || time.Since(began) > time.Minute {
			t.Errorf("%s: got %q after %s", script, said, time.Since(began))
		}
	}
}

// Paper that comes to its end while an update is judged takes no update back,
// and a printer that had little paper before is held against one that breaks it.
func TestAttentionIsWell(t *testing.T) {
	for health, want := range map[hal.Health]string{
		hal.OK: "OK", hal.Attention: "OK", hal.Fault: "Fault", hal.Offline: "Offline", hal.NoSensor: "Unknown",
	} {
		if got := agent.Wellness(health); got != want {
			t.Errorf("%s counts as %s, want %s", health, got, want)
		}
	}
}

// spoilt is a printer that a version of an application breaks. It says nothing
// unless it is asked.
type spoilt struct{ current, by string }

func (spoilt) Name() string { return "spoilt" }

func (s spoilt) Open(context.Context, hal.Config) (hal.Device, error) { return s, nil }

func (s spoilt) Info() hal.Info { return hal.Info{ID: "receipt", Category: hal.POSPrinter} }

func (s spoilt) String() string { return "receipt" }

func (s spoilt) Halt() error { return nil }

func (s spoilt) Close() error { return nil }

func (s spoilt) Status(context.Context) (hal.Status, error) {
	if to, _ := os.Readlink(s.current); filepath.Base(to) == s.by {
		return hal.Status{Power: hal.PowerOffOffline, Health: hal.Offline}, nil
	}
	return hal.Status{Power: hal.PowerOnline, Health: hal.OK}, nil
}

// An application that breaks the printer is found out by asking it then, not by
// what was seen of it before.
func TestApplicationBreaksThePrinter(t *testing.T) {
	f := newFleet(t)
	f.application("1.0.0", "0")
	f.application("1.1.0", "0")
	b := f.box()
	b.cfg.Update.CheckFor = agent.Duration{Duration: 5 * time.Second}
	b.cfg.Telemetry.Poll = agent.Duration{Duration: 20 * time.Minute}
	b.cfg.Devices = []agent.DeviceConfig{{ID: "receipt", Driver: "spoilt"}}
	b.drivers = []hal.Driver{spoilt{filepath.Join(b.cfg.Update.AppsDir, "pos", "current"), "1.1.0"}}
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	if r := f.offerOf("app", pos, "1.0.0", nil); r.State != "SUCCEEDED" {
		t.Fatalf("got %+v", r)
	}
	if r := f.offerOf("app", pos, "1.1.0", nil); r.State != "ROLLED_BACK" || r.Reason != "unhealthy" || !strings.Contains(r.Text, "receipt") {
		t.Errorf("got %+v", r)
	}
}

// A till that is in use is not touched, and says what it waits for.
func TestWaitsForTheApplication(t *testing.T) {
	f := newFleet(t)
	f.configuration("till", "1.0.0", `{"label":"till seven"}`)
	b := f.box()
	b.cfg.Update.IdleLock = filepath.Join(t.TempDir(), "busy")
	must(t, os.WriteFile(b.cfg.Update.IdleLock, nil, 0o600))
	b.cfg.Update.CheckFor = agent.Duration{Duration: time.Second}
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	done := make(chan wire.ResultReport)
	go func() { done <- f.offerOf("config", "ops/"+tenant+"/till", "1.0.0", nil) }()
	f.until("it does not wait", func() bool {
		return slices.ContainsFunc(f.results, func(r wire.ResultReport) bool { return r.State == "WAITING" && r.Reason == "idle-lock" && r.Text != "" })
	})
	f.until("the state does not say what is in work", func() bool { return f.state.Execution == "x-config-1.0.0" })
	must(t, os.Remove(b.cfg.Update.IdleLock))
	if r := <-done; r.State != "SUCCEEDED" {
		t.Errorf("got %+v", r)
	}
}

// medium writes an update medium.
func (f *fleet) medium(name, id, ofTenant string, signer *trust.OrderSigner, items ...wire.MediumItem) {
	f.t.Helper()
	dir := f.path("media/" + name)
	must(f.t, os.MkdirAll(filepath.Dir(dir), 0o700))
	tmp := filepath.Join(f.t.TempDir(), "medium")
	must(f.t, os.CopyFS(tmp, os.DirFS(f.repo.Dir)))
	payload, err := wire.Encode(&wire.MediumOrder{
		V: wire.Version, ID: id, Tenant: ofTenant, IssuedAt: time.Now().UnixMilli(), NotAfter: time.Now().Add(time.Hour).UnixMilli(), Releases: items, By: "test",
	})
	must(f.t, err)
	o := wire.Order{Kind: wire.OrderMedium, Payload: payload}
	o.KeyID, o.Signature, err = signer.SignOrder(o.Kind, payload)
	must(f.t, err)
	b, err := wire.Encode(&o)
	must(f.t, err)
	must(f.t, os.WriteFile(filepath.Join(tmp, "order.cbor"), b, 0o600))
	must(f.t, os.Rename(tmp, dir))
}

// A stick brings an update to a till that has no network, and only what is
// meant for it.
func TestMedium(t *testing.T) {
	f := newFleet(t)
	f.configuration("till", "1.0.0", `{"label":"by stick"}`)
	item := wire.MediumItem{Class: "config", Version: "1.0.0", Target: "ops/" + tenant + "/till/1.0.0/settings.json"}
	b := f.connected()
	b.stop()
	f.set(func() { f.locked["till-1"] = true }) // the service does not know it any more
	b.start()
	_, other, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	f.medium("forged", "m-1", tenant, trust.NewOrderSigner(other), item)
	f.medium("others", "m-2", "others", f.orders, item)
	f.medium("good", "m-3", tenant, f.orders, item, wire.MediumItem{Class: "os", Version: "1.0.0", Target: "os/box-1/prod/1.0.0/bundle.raucb"})
	label := func() bool {
		b, err := os.ReadFile(filepath.Join(b.cfg.StateDir, "agent", "journal.json"))
		return err == nil && strings.Contains(string(b), `"state":"SUCCEEDED"`) && strings.Contains(string(b), `"execution":"m-3-ops-demo-till"`)
	}
	for deadline := time.Now().Add(30 * time.Second); !label(); {
		if time.Now().After(deadline) {
			t.Fatal("the medium was not taken within 30 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
	f.set(func() { f.locked["till-1"] = false })
	b.stop()
	b.start()
	f.until("the label is not told", func() bool { return f.state.Label == "by stick" })
	f.until("the trail of the media is not complete", func() bool {
		refused, executions := 0, map[string]bool{}
		for _, r := range f.audit {
			if r.Kind == "update.medium-refused" && r.Severity == "alarm" {
				refused++
			}
			if strings.HasPrefix(r.Kind, "update.") && strings.HasPrefix(r.Subject, "m-") {
				executions[r.Subject] = true
			}
		}
		if executions["m-1-ops-demo-till"] || executions["m-2-ops-demo-till"] || executions["m-3-os-box-1-prod"] {
			t.Errorf("something was taken that was not meant for this box: %v", executions)
		}
		return refused >= 2 && executions["m-3-ops-demo-till"]
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.results, func(r wire.ResultReport) bool { return strings.HasPrefix(r.ID, "m-") }) {
		t.Error("the service was sent reports of an execution that it does not have")
	}
}

// Half of the life of the metadata without another is the time to say so.
func TestAgeOfMetadata(t *testing.T) {
	signed := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	expires := signed.Add(7 * 24 * time.Hour)
	for at, want := range map[time.Duration]int{0: 0, 83 * time.Hour: 0, 84 * time.Hour: 1, 167 * time.Hour: 1, 168 * time.Hour: 2} {
		if got := agent.Aged(signed.Add(at), signed, expires); got != want {
			t.Errorf("after %s: got %d, want %d", at, got, want)
		}
	}
	if got := agent.Aged(expires, time.Time{}, time.Time{}); got != 0 {
		t.Errorf("nothing known: got %d", got)
	}
}

// What a till has fetched other tills of the same owner may have, and nobody
// else.
func TestShare(t *testing.T) {
	f := newFleet(t)
	f.application("1.0.0", "0")
	b := f.box()
	b.cfg.Update.Share = "127.0.0.1:0"
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	if r := f.offerOf("app", pos, "1.0.0", nil); r.State != "SUCCEEDED" {
		t.Fatalf("got %+v", r)
	}
	at := ""
	f.until("it does not say where it shares", func() bool { at = f.state.Share; return at != "" })
	var sum string
	targets, err := f.repo.List()
	must(t, err)
	for _, x := range targets {
		if strings.HasPrefix(x.Path, pos) {
			sum = x.SHA256
		}
	}
	for of, welcome := range map[string]bool{tenant: true, "others": false} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		der, err := f.ca.IssueDevice(identity.Identity{Tenant: of, Device: f.device(), Tier: identity.TierA, Model: model}, &key.PublicKey, time.Hour)
		must(t, err)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // #nosec G402 -- the till's name is its device id
			Certificates: []tls.Certificate{{Certificate: append([][]byte{der}, f.ca.Chain()...), PrivateKey: key}},
		}}}
		resp, err := client.Get("https://" + at + "/content/" + sum)
		if err != nil {
			if welcome {
				t.Errorf("a device of %s: %v", of, err)
			}
			continue
		}
		got := sha256.New()
		_, err = io.Copy(got, resp.Body)
		_ = resp.Body.Close()
		if whole := err == nil && hex.EncodeToString(got.Sum(nil)) == sum; whole != welcome {
			t.Errorf("a device of %s: got %s, whole %v, want %v", of, resp.Status, whole, welcome)
		}
	}
}

// Starts that no orderly end came before are counted, and a lock whose process
// is gone is told.
func TestCrashesAndStaleLock(t *testing.T) {
	f := newFleet(t)
	f.configuration("till", "1.0.0", `{"label":"x"}`)
	b := f.box()
	b.cfg.Update.IdleLock = filepath.Join(t.TempDir(), "busy")
	gone := exec.CommandContext(t.Context(), "true")
	must(t, gone.Run())
	must(t, os.WriteFile(b.cfg.Update.IdleLock, []byte(strconv.Itoa(gone.Process.Pid)), 0o600))
	must(t, os.WriteFile(filepath.Join(b.cfg.StateDir, "runs.json"), []byte(`{"running":true,"crashes":2}`), 0o600))
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("the crash is not told", func() bool { return f.state.Crashes == 3 })
	if r := f.offerOf("config", "ops/"+tenant+"/till", "1.0.0", nil); r.State != "SUCCEEDED" {
		t.Errorf("behind a stale lock: got %+v", r)
	}
	f.until("the stale lock is not told", func() bool { return f.audited("update.stale-lock") })
	b.stop()
	f.set(func() { f.state = wire.StateReport{} })
	b.start()
	f.until("an orderly end counts as a crash", func() bool { return f.state.AgentVersion != "" && f.state.Crashes == 3 })
}
