package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/enrol"
)

// anchors checks every anchor of the trail as a service does, and returns why
// they were made.
func (f *fleet) anchors() (why []string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var ak []byte
	device := ""
	for id, m := range f.members {
		device, ak = id, m.AK
	}
	last := uint64(0)
	for _, seq := range slices.Sorted(maps.Keys(f.audit)) {
		r := f.audit[seq]
		a := r.Anchor
		if a == nil {
			continue
		}
		why = append(why, a.Why)
		if err := enrol.VerifyAnchor(ak, wire.AnchorBinding(device, seq-1, r.Prev), a.Attest, a.Signature, a.Counter); err != nil {
			f.t.Errorf("anchor %d: %v", seq, err)
		}
		for what, b := range map[string][32]byte{
			"another device": wire.AnchorBinding("dev-2", seq-1, r.Prev), "another entry": wire.AnchorBinding(device, seq, r.Prev), "another chain": wire.AnchorBinding(device, seq-1, [32]byte{1}),
		} {
			if err := enrol.VerifyAnchor(ak, b, a.Attest, a.Signature, a.Counter); !errors.Is(err, enrol.ErrProof) {
				f.t.Errorf("anchor %d holds for %s: %v", seq, what, err)
			}
		}
		if a.Counter <= last {
			f.t.Errorf("anchor %d has the count %d after %d", seq, a.Counter, last)
		}
		last = a.Counter
	}
	return why
}

// TestTrailIsAnchored follows a box through its day: its TPM vouches for the trail
// at boot and at the stop, and for what is left of it behind damage.
func TestTrailIsAnchored(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.start()
	f.until("not anchored at boot", func() bool { return f.audited("audit.anchor") })
	b.stop()
	f.chained()
	if why := f.anchors(); !slices.Equal(why, []string{"boot", "stop"}) {
		t.Errorf("anchors %q", why)
	}
	f.mu.Lock()
	known := uint64(len(f.audit))
	if before := f.audit[known-1]; before.Kind != "agent.stop" || before.Mono <= 0 || before.Clock == "" {
		t.Errorf("the last anchor is behind %+v", before)
	}
	f.mu.Unlock()
	// The books are gone, and with them who the box is: it enrols anew and goes on.
	for _, part := range []string{"", "-wal"} {
		if err := os.Remove(filepath.Join(b.cfg.StateDir, "spool.db") + part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	b.start()
	f.until("not anchored behind the break", func() bool { return f.audited("audit.break") && f.audited("audit.anchor") && f.has("audit.anchor", 3) })
	b.stop()
	f.chained()
	if why := f.anchors(); !slices.Equal(why, []string{"boot", "stop", "break", "stop"}) {
		t.Errorf("anchors %q", why)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for seq, r := range f.audit {
		if r.Break != nil && (r.Break.Seq != known || seq != known+512 || r.Detail["reason"] != "lost") {
			t.Errorf("entry %d of %d: %+v of %+v", seq, known, r.Break, r)
		}
	}
}

// TestCountersigned holds that the service's word for the trail is taken when it
// is genuine and right, and that each other is an alarm and kept nowhere.
func TestCountersigned(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.start()
	f.attested("not attested")
	f.until("not anchored", func() bool { return f.audited("audit.anchor") })
	good := func() wire.Countersign {
		f.mu.Lock()
		defer f.mu.Unlock()
		seq := uint64(len(f.audit))
		e, err := wire.SealAudit(f.audit[seq])
		must(t, err)
		for id := range f.members {
			return wire.Countersign{V: wire.Version, Tenant: tenant, Device: id, Seq: seq, Hash: e.Hash, At: time.Now().UnixMilli()}
		}
		return wire.Countersign{}
	}
	said := func(kind, reason string) bool {
		for _, r := range f.audit {
			if r.Kind == kind && r.Detail["reason"] == reason {
				return true
			}
		}
		return false
	}
	publish := func(device string, o wire.Order) {
		b, err := wire.Encode(&o)
		must(t, err)
		must(t, f.mqtt.Publish(wire.Topic{Tenant: tenant, Device: device, Channel: wire.DownConfig}.String(), b, false, 1))
	}
	send := func(kind string, change func(*wire.Countersign)) {
		c := good()
		device := c.Device
		change(&c)
		payload, err := wire.Encode(&c)
		must(t, err)
		o := wire.Order{Kind: kind, Payload: payload}
		o.KeyID, o.Signature, err = f.orders.SignOrder(kind, payload)
		must(t, err)
		publish(device, o)
	}
	send(wire.OrderHead, func(*wire.Countersign) {})
	f.until("the word is not on record", func() bool { return said("audit.countersigned", "") })
	for reason, change := range map[string]func(*wire.Countersign){
		"ahead":   func(c *wire.Countersign) { c.Seq += 1000 },
		"differs": func(c *wire.Countersign) { c.Hash[0] ^= 1 },
		"device":  func(c *wire.Countersign) { c.Device = "dev-2" },
	} {
		send(wire.OrderHead, change)
		f.until("no alarm: "+reason, func() bool { return said("audit.disputed", reason) })
	}
	b.stop()
	kept, err := os.ReadFile(filepath.Join(b.cfg.StateDir, "trail.json"))
	must(t, err)
	if !strings.Contains(string(kept), `"countersigned":"`) || !strings.Contains(string(kept), `"device":"`+f.device()+`"`) {
		t.Errorf("kept is %s", kept)
	}
	b.start() // another run may tell the next that does not verify
	f.until("not connected again", func() bool { return f.has("link.up", 2) })
	c := good()
	payload, e := wire.Encode(&c)
	must(t, e)
	key, _ := f.orders.Public()
	publish(c.Device, wire.Order{Kind: wire.OrderHead, Payload: payload, KeyID: key, Signature: make([]byte, 64)})
	f.until("no alarm: forged", func() bool { return said("audit.disputed", "signature") })
	b.stop()
	f.chained()
	f.anchors()
}

// TestReasons holds which code of the trail an error has, and that none has its
// words.
func TestReasons(t *testing.T) {
	_, refused := net.Dial("tcp", "127.0.0.1:1")
	_, missing := os.Open("/nowhere/at/all")
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	for want, err := range map[string]error{
		"none": nil, "other": errors.New("4111 1111 1111 1111"), "refused": refused, "missing": missing, "timeout": ctx.Err(), "eof": io.EOF,
		"dns": &net.OpError{Op: "dial", Err: &net.DNSError{Name: "fleet.example", Err: "no such host"}}, "tls": &net.OpError{Op: "remote error", Err: errors.New("bad certificate")},
		"reset": &net.OpError{Op: "read", Err: syscall.ECONNRESET}, "unreachable": &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "closed": net.ErrClosed,
		"full": spool.ErrFull, "refused-by-service": enrol.Refuse("enrol.owner", "no"), "E_BUSY": &hal.Error{Code: "E_BUSY"},
	} {
		for _, e := range []error{err, fmt.Errorf("what we did: %w", err)} {
			if err == nil && e != nil {
				continue
			}
			if got := agent.Reason(e); got != want {
				t.Errorf("%v: got %s, want %s", e, got, want)
			}
		}
	}
}
