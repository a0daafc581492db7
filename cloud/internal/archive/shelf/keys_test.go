package shelf

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// anchors lets the device record n anchors, each signed with a key of its own, as the service has found.
func (p *place) anchors(n int) {
	p.t.Helper()
	in := fleet.Intake{Device: device, Tenant: "main", At: time.Now()}
	for range n {
		seq := p.head.Seq + 1
		e, err := wire.SealAudit(wire.AuditRecord{Seq: seq, At: 1, Boot: wire.Boot{1}, Kind: "audit.anchor", Severity: "info", Prev: p.head.Hash})
		must(p.t, err)
		in.Audit = append(in.Audit, fleet.AuditEvent{Seq: seq, At: time.UnixMilli(1), Kind: "audit.anchor", Severity: "info", Body: e.Body, Hash: e.Hash, Prev: p.head.Hash})
		in.Anchors = append(in.Anchors, fleet.AnchorSeen{Seq: seq, Counter: seq, Key: fleet.AttestationKey{Public: keyOf(seq), Since: time.UnixMilli(int64(seq))}}) // #nosec G115 -- a small number
		p.head = fleet.Head{Seq: seq, Hash: e.Hash}
	}
	_, err := p.store.Commit(p.t.Context(), []fleet.Intake{in})
	must(p.t, err)
}

func keyOf(seq uint64) []byte { return fmt.Appendf(nil, "%0200d", seq) }

// keys are those that the first line of an export names, by the entry that each signed; the device's other one is 0.
func (p *place) keys(from, to uint64) (map[uint64]bool, error) {
	p.t.Helper()
	var buf bytes.Buffer
	_, write, err := p.shelf.Export(p.t.Context(), "main", device, from, to, "ada")
	must(p.t, err)
	if err := write(p.t.Context(), &buf); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(&buf).ReadBytes('\n')
	must(p.t, err)
	var h archive.Header
	must(p.t, json.Unmarshal(line, &h))
	out := map[uint64]bool{}
	for _, k := range h.AKs {
		var seq uint64
		if len(k.Public) > 1 {
			_, err := fmt.Sscanf(string(k.Public), "%d", &seq)
			must(p.t, err)
		}
		out[seq] = true
	}
	return out, nil
}

// TestKeysOfAFile: a sealed file names the keys that signed what is in it, and those that the device signs with now.
func TestKeysOfAFile(t *testing.T) {
	p := newPlace(t)
	p.anchors(60)
	got, err := p.keys(11, 20)
	must(t, err)
	for seq := uint64(1); seq <= 60; seq++ {
		needed, newest := seq > 10 && seq <= 20, seq > 60-fleet.AnchorKeys
		if got[seq] != needed && !newest {
			t.Errorf("the key that signed entry %d: named %v, needed %v", seq, got[seq], needed)
		}
	}
	if !got[0] || len(got) > 10+fleet.AnchorKeys {
		t.Errorf("%d keys are named, the one in use %v", len(got), got[0])
	}
	if got, err = p.keys(0, 0); err != nil || len(got) != 61 {
		t.Errorf("of all: %d keys, %v", len(got), err)
	}
}

// TestTooManyKeys: a trail whose keys do not fit into a sealed file, as one could be before they were bounded, is not
// put away, and keeps no other trail from it.
func TestTooManyKeys(t *testing.T) {
	p := newPlace(t)
	p.anchors(1200)
	if _, err := p.keys(0, 0); !errors.Is(err, archive.ErrNoTrail) {
		t.Errorf("export of all: %v", err)
	}
	if got, err := p.keys(600, 0); err != nil || len(got) < 601 { // in parts it can be taken away
		t.Errorf("export of a part: %d keys, %v", len(got), err)
	}
	p.acts(3)
	must(t, p.shelf.run(t.Context(), months(14)))
	if st := p.shelf.State(); st.Unsound != 1 || st.Err != nil || p.rows(device) != 1200 {
		t.Errorf("state: %+v, %d rows", st, p.rows(device))
	}
	if n, ev := p.kinds("audit.archive_failed"); n != 1 || ev.Subject != string(device) || !strings.Contains(ev.Detail["what"], "no reader takes more") {
		t.Errorf("told %d times: %+v", n, ev)
	}
	if got := p.segments(); len(got) != 1 || got[0].Trail != "" {
		t.Errorf("got %+v", got)
	}
}
