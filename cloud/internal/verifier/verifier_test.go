package verifier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
)

// desk is the store and the link of one device, without a disk.
type desk struct {
	mu       sync.Mutex
	d        fleet.Device
	broken   error
	sent     []wire.Challenge
	exporter []byte // of the connection that is there
	cut      []string
	offline  bool
	changed  int
}

func (k *desk) verifier() *verifier.Verifier {
	return verifier.New(verifier.Options{
		Devices: k, Firmware: k, Link: k, Every: 15 * time.Minute, Unjudged: fleet.Attested, Changed: func(fleet.Device) { k.changed++ }, Log: quiet,
	})
}

func (k *desk) DeviceByID(_ context.Context, id fleet.DeviceID) (fleet.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id != k.d.ID {
		return fleet.Device{}, fleet.ErrNotFound
	}
	return k.d, nil
}

func (k *desk) Appraised(_ context.Context, a fleet.Attestation, _ bool, _ ...fleet.AuditEvent) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return k.broken
	}
	k.d.Trust, k.d.Findings, k.d.ResetCount, k.d.BootDigest = a.Trust, a.Findings, max(k.d.ResetCount, a.ResetCount), nil
	if a.Accepted() {
		k.d.AttestedAt, k.d.BootDigest = a.At, a.Digest
	}
	return nil
}

func (k *desk) PromoteAK(context.Context, fleet.DeviceID, []byte) error { return nil }

func (k *desk) MarkStale(_ context.Context, before time.Time) ([]fleet.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.d.Trust != fleet.Attested || !k.d.AttestedAt.Before(before) {
		return nil, nil
	}
	k.d.Trust = fleet.Stale
	return []fleet.Device{k.d}, nil
}

func (k *desk) References(context.Context, string) ([]fleet.BootReference, error) { return nil, nil }

func (k *desk) OfferedRelease(context.Context, fleet.DeviceID) (fleet.ReleaseID, error) {
	return "", fleet.ErrNotFound
}

func (k *desk) FirmwareDecisions(context.Context, fleet.TenantID, string) (map[string]fleet.Approval, error) {
	return nil, nil
}

func (k *desk) SeeFirmware(context.Context, fleet.TenantID, string, fleet.DeviceID, []fleet.FirmwareEvent) error {
	return nil
}

func (k *desk) Challenge(_ fleet.DeviceID, payload []byte) ([]byte, error) {
	return k.exporter, k.take(payload)
}

func (k *desk) Verdict(_ fleet.DeviceID, exporter []byte, _ fleet.Trust, payload []byte) error {
	if !bytes.Equal(exporter, k.exporter) {
		return errors.New("another connection")
	}
	return k.take(payload)
}

func (k *desk) take(payload []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.offline {
		return errors.New("offline")
	}
	m, err := wire.Decode[wire.Challenge](payload)
	if err != nil {
		return err
	}
	k.sent = append(k.sent, m)
	return nil
}

func (k *desk) Connected() map[fleet.DeviceID]fleet.Trust {
	if k.offline {
		return nil
	}
	return map[fleet.DeviceID]fleet.Trust{"dev-1": fleet.Pending}
}

func (k *desk) Disconnect(id fleet.DeviceID, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = append(k.cut, string(id)+": "+why)
}

// last is the newest message to the device.
func (k *desk) last() wire.Challenge {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.sent) == 0 {
		return wire.Challenge{}
	}
	return k.sent[len(k.sent)-1]
}

// TestStoreFails: what could not be recorded is told to nobody, and the caller can try again.
func TestStoreFails(t *testing.T) {
	k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending}, exporter: here, broken: errors.New("disk full")}
	v := k.verifier()
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: []byte("x"), Exporter: here}); !errors.Is(err, k.broken) {
		t.Errorf("got %v, want %v", err, k.broken)
	}
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-2", Payload: []byte("x"), Exporter: here}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("unknown device: got %v, want %v", err, fleet.ErrNotFound)
	}
	if len(k.sent) != 0 || k.d.Trust != fleet.Pending || k.changed != 0 {
		t.Errorf("got %+v sent, trust %s", k.sent, k.d.Trust)
	}
}

// TestClock lets hours pass: who is connected is challenged about every interval, who shows nothing for twice as long
// is stale, online or not.
func TestClock(t *testing.T) {
	for _, offline := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Attested, AttestedAt: time.Now()}, exporter: here, offline: offline}
			ctx, cancel := context.WithTimeout(t.Context(), 29*time.Minute)
			defer cancel()
			if err := k.verifier().Run(ctx); err != nil {
				t.Fatal(err)
			}
			if k.d.Trust != fleet.Attested || k.changed != 0 {
				t.Errorf("before twice the interval: got %s", k.d.Trust)
			}
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Hour)
			defer cancel()
			if err := k.verifier().Run(ctx); err != nil {
				t.Fatal(err)
			}
			if k.d.Trust != fleet.Stale || k.changed != 1 {
				t.Errorf("afterwards: got %s, told %d times, want stale, once", k.d.Trust, k.changed)
			}
			if n := len(k.sent); (offline && n != 0) || (!offline && (n < 32 || n > 56)) {
				t.Errorf("offline %v: got %d challenges in 10 hours", offline, n)
			}
		})
	}
}

// TestDay lets a device answer for a day: it is asked about every quarter of an hour, for the quote alone, and stays
// attested; one with a waiver is asked when that ends.
func TestDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, "dev-1", "os/1")
		k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending, AKPublic: c.ak()}, exporter: here}
		v := k.verifier()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		acked := make(chan error, 1)
		ack := func(err error) { acked <- err }
		if !v.Submit(verifier.Evidence{Device: "dev-1", Payload: encode(t, c.full(here, 1)), Exporter: here, At: time.Now()}, ack) {
			t.Fatal("refused")
		}
		if err := <-acked; err != nil {
			t.Fatal(err)
		}
		rounds, logs := 0, 0
		for seq := uint64(2); time.Since(began) < 24*time.Hour; seq++ {
			time.Sleep(10 * time.Second) // of the bubble's clock
			last := k.last()
			if len(last.Nonce) == 0 {
				continue
			}
			rounds++
			if last.Need == wire.NeedLog {
				logs++
			}
			if v.Submit(verifier.Evidence{Device: "dev-1", Payload: encode(t, c.steady(last.Nonce, seq)), Exporter: here, At: time.Now()}, ack) {
				if err := <-acked; err != nil {
					t.Fatal(err)
				}
			}
			if k.d.Trust != fleet.Attested {
				t.Fatalf("round %d: got %s %+v", rounds, k.d.Trust, k.d.Findings)
			}
		}
		cancel() // not at the moment of the last round, which would not be acknowledged
		if err := <-done; err != nil {
			t.Error(err)
		}
		if rounds < 72 || rounds > 120 || logs != 0 {
			t.Errorf("asked %d times in a day, %d times for the log", rounds, logs)
		}
	})
}

// TestWaiverEnds: a waiver is not made longer by silence. Who shows evidence after its end stays connected, in
// quarantine; who says nothing is cut off.
func TestWaiverEnds(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newChip(t, "dev-1", "os/1")
			until := time.Now().Add(40 * time.Minute)
			k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending, AKPublic: c.ak(), Waiver: fleet.Waiver{Until: until, By: "ann"}}, exporter: here}
			v := verifier.New(verifier.Options{
				Devices: k, Firmware: k, Link: k, Every: time.Hour, Unjudged: fleet.Quarantined, Changed: func(fleet.Device) {}, Log: quiet,
			})
			show := func(secret []byte, seq uint64) {
				if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, c.full(secret, seq)), Exporter: here, At: time.Now()}); err != nil {
					t.Error(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Minute)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- v.Run(ctx) }()
			show(here, 1)
			if k.last().Verdict != string(fleet.Degraded) {
				t.Fatalf("got %+v, want the waiver to cover it", k.last())
			}
			for seq := uint64(2); ctx.Err() == nil; seq++ {
				time.Sleep(10 * time.Second)
				if nonce := k.last().Nonce; len(nonce) > 0 && answers {
					show(nonce, seq)
				}
				k.mu.Lock()
				if len(k.cut) > 0 && time.Now().Before(until) {
					t.Error("cut off before the waiver ended")
				}
				k.mu.Unlock()
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if answers && (len(k.cut) != 0 || k.d.Trust != fleet.Quarantined) {
				t.Errorf("who answers: got %s, cut off %q", k.d.Trust, k.cut)
			}
			if !answers && len(k.cut) != 1 {
				t.Errorf("who is silent: cut off %q, want once", k.cut)
			}
		})
	}
}

// TestLookedAtAgain: what somebody decided about a model reaches a device that answers no challenge, too.
func TestLookedAtAgain(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newChip(t, "dev-1", "os/1")
			k := &desk{d: fleet.Device{ID: "dev-1", Model: "till-9", Trust: fleet.Pending, AKPublic: c.ak()}, exporter: here}
			v := k.verifier()
			show := func(secret []byte, seq uint64) {
				if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, c.full(secret, seq)), Exporter: here, At: time.Now()}); err != nil {
					t.Error(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- v.Run(ctx) }()
			show(here, 1)
			if k.last().Verdict != string(fleet.Attested) {
				t.Fatalf("got %+v", k.last())
			}
			v.Reappraise("another")
			time.Sleep(40 * time.Minute)
			if len(k.cut) != 0 {
				t.Errorf("cut off %q when nothing was decided about it", k.cut)
			}
			v.Reappraise("till-9")
			for seq := uint64(2); ctx.Err() == nil; seq++ {
				time.Sleep(10 * time.Second)
				if nonce := k.last().Nonce; len(nonce) > 0 && answers {
					show(nonce, seq)
				}
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if want := map[bool]int{true: 0, false: 1}[answers]; len(k.cut) != want {
				t.Errorf("answers %v: cut off %q", answers, k.cut)
			}
		})
	}
}

// TestCrowd: who shows evidence without end is hung up on, and others are not.
func TestCrowd(t *testing.T) {
	k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending}, exporter: here}
	v := k.verifier()
	at := time.Now()
	show := func() error {
		return v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: []byte("x"), Exporter: here, At: at})
	}
	n := 0
	for ; show() == nil; n++ {
		if n > 100 {
			t.Fatal("no end")
		}
	}
	if n < 4 {
		t.Errorf("hung up after %d", n)
	}
	if err := v.Challenge("dev-1"); err != nil {
		t.Fatal(err)
	}
	if err := show(); err == nil {
		t.Error("the evidence that was over the measure is not forgotten by one challenge")
	}
	at = at.Add(2 * time.Minute)
	if err := show(); err != nil {
		t.Errorf("later: got %v", err)
	}
	k.d.ID = "dev-2"
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-2", Payload: []byte("x"), Exporter: here, At: at}); err != nil {
		t.Errorf("another device: got %v", err)
	}
}

// TestAskedMuch: a device that answers each of many challenges is no crowd.
func TestAskedMuch(t *testing.T) {
	c := newChip(t, "dev-1", "os/1")
	k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending, AKPublic: c.ak()}, exporter: here}
	v := k.verifier()
	for seq := range uint64(200) {
		if err := v.Challenge("dev-1"); err != nil {
			t.Fatal(err)
		}
		m := c.full(k.last().Nonce, seq+1)
		if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, m), Exporter: here, At: time.Now()}); err != nil {
			t.Fatalf("answer %d: %v", seq, err)
		}
	}
	if k.d.Trust != fleet.Attested {
		t.Errorf("got %s", k.d.Trust)
	}
}

func Example() {
	// What a device is told is what the console shows and both trails keep.
	k := &desk{d: fleet.Device{ID: "dev-1", Model: "till-9", Trust: fleet.Pending}, exporter: here}
	_ = k.verifier().Appraise(context.Background(), verifier.Evidence{Device: "dev-1", Payload: []byte("x"), Exporter: here})
	c := k.last()
	fmt.Println(c.Verdict, c.Findings[0].Check, c.Actions)
	// Output: quarantined quote.malformed [diagnose update reboot]
}
