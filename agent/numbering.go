package agent

import (
	"crypto/rand"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

// numbering hands out the heads of up messages: one boot id for this run of
// the agent, and a sequence that counts every message of the run.
type numbering struct {
	boot wire.Boot
	seq  atomic.Uint64
	now  func() time.Time
}

func newNumbering(now func() time.Time) *numbering {
	n := &numbering{now: now}
	_, _ = rand.Read(n.boot[:]) // never fails [crypto/rand]
	return n
}

// Next returns the head of the next message recorded now.
func (n *numbering) Next() wire.Head {
	return wire.Head{V: wire.Version, Boot: n.boot, Seq: n.seq.Add(1), Sent: n.now().UnixMilli()}
}
