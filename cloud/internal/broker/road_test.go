package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// failing fails the first commits in front of the store.
type failing struct {
	*store.Store
	left atomic.Int32
}

func (f *failing) Commit(ctx context.Context, in []fleet.Intake) ([]fleet.Outcome, error) {
	if f.left.Add(-1) >= 0 {
		return nil, errors.New("disk full")
	}
	return f.Store.Commit(ctx, in)
}

// road is a site with a real committer and store behind it, in which device 1 is enrolled.
type road struct {
	*site
	store *store.Store
	end   func() // stops all but the store
}

// newRoad makes a road whose disk is full the first times.
func newRoad(t *testing.T, full int32) *road {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), t.TempDir(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	if err := st.Enrol(t.Context(), fleet.Device{ID: fleet.DeviceID(name(1)), Tenant: tenant, Tier: fleet.TierC, EKHash: "ek", EnrolledAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	f := &failing{Store: st}
	f.left.Store(full)
	in := ingest.New(ingest.Options{Store: f, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	r := &road{store: st, site: start(t, func(o *broker.Options) {
		o.Submit = func(m broker.Message) bool {
			return in.Submit(ingest.Message{
				Device: fleet.DeviceID(m.Identity.Device), Tenant: fleet.TenantID(m.Identity.Tenant), Channel: m.Topic.Channel, Payload: m.Payload, At: time.Now(), Ack: m.Ack, Dead: m.Dead,
			})
		}
	})}
	r.end = func() {
		r.stop()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return r
}

// entries are messages with an entry of the trail of device 1 each.
func entries(t *testing.T, n uint64) (payloads [][]byte) {
	t.Helper()
	var prev [32]byte
	for i := range n {
		e, err := wire.SealAudit(wire.AuditRecord{Seq: i + 1, At: time.Now().UnixMilli(), Boot: wire.Boot{1}, Kind: "link.up", Severity: "info", Prev: prev})
		if err != nil {
			t.Fatal(err)
		}
		prev = e.Hash
		payload, err := wire.Encode(&wire.AuditBatch{Head: wire.Head{V: 1, Boot: wire.Boot{1}, Seq: i + 1, Sent: 1}, Entries: []wire.AuditEntry{e}})
		if err != nil {
			t.Fatal(err)
		}
		payloads = append(payloads, payload)
	}
	return payloads
}

// TestRoad goes the whole way with a common library, a real store, and a disk that is full twice: each
// message is published until it is acknowledged, and is stored once.
func TestRoad(t *testing.T) {
	r := newRoad(t, 2)
	const n = 50
	cfg, connects := r.config(1), 0
	var c paho.Client
	for _, payload := range entries(t, n) {
		for acked := false; !acked; {
			if c == nil || !c.IsConnectionOpen() {
				connects++
				o := paho.NewClientOptions().AddBroker("ssl://" + r.addr).SetClientID(name(1)).SetTLSConfig(cfg).SetAutoReconnect(false).SetConnectRetry(false)
				c = paho.NewClient(o)
				if tok := c.Connect(); !tok.WaitTimeout(wait) || tok.Error() != nil {
					t.Fatal(tok.Error())
				}
			}
			tok := c.Publish(up(name(1), true, wire.Audit), 1, false, payload)
			acked = tok.WaitTimeout(wait) && tok.Error() == nil
		}
	}
	c.Disconnect(10)
	r.end()
	rep, err := r.store.VerifyAudit(t.Context(), tenant, fleet.DeviceID(name(1)))
	if err != nil || !rep.OK || rep.Entries != n || connects != 3 {
		t.Errorf("got %+v, %v after %d connections, want %d entries after 3", rep, err, connects, n)
	}
}

// TestSentAgain publishes each message under one packet id three times, the copies with DUP [MQTT 3.1.1, 3.3.1.1], and
// all of them once more by another connection: every PUBLISH gets its PUBACK, and each row is there once.
func TestSentAgain(t *testing.T) {
	r := newRoad(t, 0)
	const n = 20
	payloads := entries(t, n)
	for range 2 {
		c := r.device(1)
		acks := map[uint16]int{}
		for i, payload := range payloads {
			for again := range byte(3) {
				flags := byte(0x02) // QoS 1
				if again > 0 {
					flags |= 0x08 // DUP
				}
				c.send(publish(flags, up(name(1), true, wire.Audit), uint16(i+1), payload))
			}
		}
		for range 3 * n {
			acks[c.puback()]++
		}
		for i := range uint16(n) {
			if acks[i+1] != 3 {
				t.Errorf("message %d was acknowledged %d times, want 3", i+1, acks[i+1])
			}
		}
	}
	r.end()
	rep, err := r.store.VerifyAudit(t.Context(), tenant, fleet.DeviceID(name(1)))
	if own, ownErr := r.store.VerifyAudit(t.Context(), tenant, ""); err != nil || ownErr != nil || !rep.OK || rep.Entries != n || own.Entries != 0 {
		t.Errorf("got %+v (%v) and %d entries of the service's own (%v), want %d entries and no alarm", rep, err, own.Entries, ownErr, n)
	}
}
