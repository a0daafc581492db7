package escpos_test

import (
	"net"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
)

// What a printer says may be too much for the driver: that costs the connection
// and not the agent.
func TestPanicCostsTheConnection(t *testing.T) {
	track := hal.NewTracker(hal.POSPrinter)
	for i := range 3 {
		if track.Broken() {
			t.Fatalf("given up after %d panics", i)
		}
		near, far := net.Pipe()
		go func() { _, _ = far.Write([]byte{0x10, 0, 0, 0}) }()
		if !escpos.Listens(near, track) {
			t.Error("the connection is still thought to be there")
		}
		_ = far.Close()
	}
	if s := track.Status(); !track.Broken() || s.Reason != "M_DRIVER_PANIC" {
		t.Errorf("after three panics: %+v", s)
	}
}
