package port_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/hal/port"
)

// What a device says is read at once; what one says without an end is read no
// faster than any device has something to say.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := port.Hear()
		took := func(n int) time.Duration {
			began := time.Now()
			for ; n > 0; n -= 256 {
				heard(256)
			}
			return time.Since(began)
		}
		if d := took(60 << 10); d != 0 {
			t.Errorf("a long answer took %s", d)
		}
		if d := took(10 << 20); d < 10*time.Minute || d > 12*time.Minute {
			t.Errorf("10 MiB took %s, want some ten minutes", d)
		}
		<-time.After(10 * time.Second)
		if d := took(60 << 10); d != 0 {
			t.Errorf("a long answer after a pause took %s", d)
		}
	})
}

// Each kind of cable is calm.
func TestFlood(t *testing.T) {
	const n = 72 << 10
	for name, lay := range cables(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, far := lay(t)
			go func() { _, _ = far.Write(make([]byte, n)) }()
			began := time.Now()
			_ = c.SetReadDeadline(began.Add(20 * time.Second))
			if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < 100*time.Millisecond {
				t.Errorf("%d bytes were read in %s", n, d)
			}
		})
	}
}
