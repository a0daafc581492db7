package agent_test

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent"
)

// TestListening reads the tables of the kernel, and finds a port of this test's.
func TestListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	if got := agent.Listening("/proc"); !slices.Contains(got, "tcp "+l.Addr().String()) {
		t.Errorf("got %q, want %s among them", got, l.Addr())
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return // the tables below are of a machine of the other kind
	}
	proc := t.TempDir()
	table := func(name string, rows ...string) {
		must(t, errors.Join(os.MkdirAll(filepath.Join(proc, "net"), 0o700), os.WriteFile(filepath.Join(proc, "net", name), []byte("  sl  local_address rem_address   st\n"+strings.Join(rows, "\n")+"\n"), 0o600)))
	}
	table("tcp", "   0: 0100007F:0CEA 00000000:0000 0A 0", "   1: 0A00020F:0016 0202000A:D431 01 0", "   2: bad:zz 00000000:0000 0A 0")
	table("tcp6", "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0")
	table("udp", "   0: 00000000:0044 00000000:0000 07 0", "   1: 0F02000A:0044 0202000A:0043 01 0")
	if got, want := agent.Listening(proc), []string{"tcp 127.0.0.1:3306", "tcp [::]:22", "udp 0.0.0.0:68"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := agent.Listening(filepath.Join(proc, "none")); got != nil {
		t.Errorf("without tables: got %q", got)
	}
}
