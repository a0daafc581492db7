package verifier_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// TestStorm brings a fleet back at one moment, many more than can be appraised at once: everybody is served, each with
// the verdict that is due, and nobody is sent away.
func TestStorm(t *testing.T) {
	const n = 300
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	chips := make([]*chip, n)
	for i := range chips {
		chips[i] = x.enrol(newChip(t, fleet.DeviceID(fmt.Sprintf("dev-%d", i)), "os/1"))
		if i%10 == 9 {
			chips[i].fw.Event("cmdline").Image = []byte("init=/bin/sh")
		}
	}
	var wg sync.WaitGroup
	var failed atomic.Int32
	for _, c := range chips {
		wg.Add(1)
		e := verifier.Evidence{Device: c.id, Payload: encode(t, c.full(here, 1)), Exporter: here}
		ok := x.v.Submit(e, func(err error) { // while nobody appraises yet
			if err != nil {
				failed.Add(1)
			}
			wg.Done()
		})
		if !ok {
			t.Fatalf("%s was sent away", c.id)
		}
	}
	x.run()
	wg.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d were not acknowledged", failed.Load(), n)
	}
	for i, c := range chips {
		want := fleet.Attested
		if i%10 == 9 {
			want = fleet.Quarantined
		}
		if d := x.device(c.id); d.Trust != want {
			t.Errorf("%s: got %s %+v, want %s", c.id, d.Trust, d.Findings, want)
		}
	}
}

// waiting is a store in which appraisals take until they are let go.
type waiting struct {
	*desk
	let chan struct{}

	mu    sync.Mutex
	now   int
	most  int
	order []fleet.DeviceID
	busy  map[fleet.DeviceID]bool
	twice bool // two of one device at once
}

func (w *waiting) DeviceByID(_ context.Context, id fleet.DeviceID) (fleet.Device, error) {
	w.mu.Lock()
	w.now++
	w.most = max(w.most, w.now)
	w.twice = w.twice || w.busy[id]
	w.busy[id] = true
	w.order = append(w.order, id)
	w.mu.Unlock()
	<-w.let
	w.mu.Lock()
	w.now--
	w.busy[id] = false
	w.mu.Unlock()
	return fleet.Device{}, fleet.ErrNotFound
}

func newWaiting() (*waiting, *verifier.Verifier) {
	w := &waiting{desk: &desk{}, let: make(chan struct{}), busy: map[fleet.DeviceID]bool{}}
	return w, verifier.New(verifier.Options{Devices: w, Firmware: w.desk, Link: w.desk, Every: 1 << 40, Changed: func(fleet.Device) {}, Log: quiet})
}

// TestQueue: a bounded number is appraised at once, of one device one at a time and in order, devices in their turn;
// and a connection can only have so much waiting.
func TestQueue(t *testing.T) {
	w, v := newWaiting()
	var mu sync.Mutex
	acked := map[fleet.DeviceID][]byte{}
	var wg sync.WaitGroup
	put := func(id fleet.DeviceID, b byte) bool {
		wg.Add(1)
		ok := v.Submit(verifier.Evidence{Device: id, Payload: []byte{b}, Exporter: here}, func(error) {
			mu.Lock()
			defer mu.Unlock()
			acked[id] = append(acked[id], b)
			wg.Done()
		})
		if !ok {
			wg.Done()
		}
		return ok
	}
	taken := 0
	for b := byte(0); put("greedy", b); b++ {
		if taken++; taken > 100 {
			t.Fatal("one connection may fill the queue")
		}
	}
	const n = 200
	for i := range n {
		if !put(fleet.DeviceID(fmt.Sprintf("dev-%d", i)), 0) {
			t.Fatal("refused, because another is greedy")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	for range taken + n {
		w.let <- struct{}{}
	}
	wg.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if w.twice {
		t.Error("two of one device were appraised at once")
	}
	if w.most > 8*runtime.GOMAXPROCS(0) {
		t.Errorf("%d were appraised at once", w.most)
	}
	if got := acked["greedy"]; len(got) != taken || !bytes.Equal(got, []byte{0, 1, 2, 3}[:taken]) {
		t.Errorf("of one device: acknowledged %v, want %d in order", got, taken)
	}
	second, seen := 0, 0
	for i, id := range w.order {
		if id != "greedy" {
			continue
		}
		if seen++; seen == 2 {
			second = i
		}
	}
	if second < n/2 {
		t.Errorf("the second of the greedy one was the %d. to be appraised, want others to have their turn first", second)
	}
}

// TestNewerConnection: what a device showed on a connection that it has left waits no more.
func TestNewerConnection(t *testing.T) {
	_, v := newWaiting()
	acks := make(chan error, 8)
	put := func(exporter []byte) {
		t.Helper()
		if !v.Submit(verifier.Evidence{Device: "dev-1", Payload: []byte{1}, Exporter: exporter}, func(err error) { acks <- err }) {
			t.Fatal("refused")
		}
	}
	put(here)
	put(here)
	put(there)
	for range 2 {
		if err := <-acks; err == nil {
			t.Error("left, and acknowledged")
		}
	}
	for i := range 1000 { // over and over: nothing heaps up
		put(binary.BigEndian.AppendUint64(bytes.Repeat([]byte{3}, 24), uint64(i)))
		if err := <-acks; err == nil {
			t.Error("left, and acknowledged")
		}
	}
}

// TestStop: what waits when the verifier stops is not acknowledged, what is in hand is finished, and nothing is taken
// any more.
func TestStop(t *testing.T) {
	w, v := newWaiting()
	ctx, cancel := context.WithCancel(t.Context())
	acks := make(chan error, 2000)
	const n = 1000
	for i := range n {
		v.Submit(verifier.Evidence{Device: fleet.DeviceID(fmt.Sprint(i)), Payload: []byte{1}, Exporter: here}, func(err error) { acks <- err })
	}
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	w.let <- struct{}{} // one is in hand at least
	cancel()
	late := verifier.Evidence{Device: "late", Payload: []byte{1}, Exporter: here}
	for i := uint64(0); v.Submit(late, func(error) {}); i++ { // until it has noticed
		late.Exporter = binary.BigEndian.AppendUint64(nil, i)
		runtime.Gosched()
	}
	go func() {
		for {
			select {
			case w.let <- struct{}{}:
			case <-t.Context().Done():
				return
			}
		}
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	left := 0
	for range n {
		if err := <-acks; !errors.Is(err, fleet.ErrNotFound) {
			left++
		}
	}
	if left == 0 || left == n {
		t.Errorf("%d of %d were left, want some, and those in hand finished", left, n)
	}
	if v.Submit(late, func(error) { t.Error("told") }) {
		t.Error("taken after the end")
	}
}

// TestMemory: evidence that waits takes a bounded number of bytes.
func TestMemory(t *testing.T) {
	_, v := newWaiting()
	payload := make([]byte, 64<<20)
	n := 0
	for v.Submit(verifier.Evidence{Device: fleet.DeviceID(fmt.Sprint(n)), Payload: payload, Exporter: here}, func(error) {}) {
		if n++; n > 100 {
			t.Fatal("no end")
		}
	}
	if n != 8 {
		t.Errorf("took %d of 64 MiB, want 8", n)
	}
	if !v.Submit(verifier.Evidence{Device: "small", Payload: nil, Exporter: here}, func(error) {}) {
		t.Error("what takes no room has none")
	}
}
