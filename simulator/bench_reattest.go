package simulator

import (
	"context"
	"errors"
	"runtime"
	"syscall"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
)

// benchReattest measures the proof in steady evidence: decode, signature,
// binding, selection, digest. What the service does beside it - its table, the verdict
// on the wire - is in the reconnect storm.
func benchReattest(ctx context.Context) (Figure, error) {
	const n = 500
	dev := swarm.New("reattest", 1, nil, nil)
	id, err := dev.ID()
	if err != nil {
		return Figure{}, err
	}
	ak, _, err := dev.Keys(ctx)
	if err != nil {
		return Figure{}, err
	}
	_, _, pcrs, err := dev.Quote(ctx, make([]byte, 32))
	if err != nil {
		return Figure{}, err
	}
	exporter := make([]byte, 32)
	var all [][]byte
	for seq := range uint64(n) {
		e, err := dev.Steady(exporter, seq+1, time.Now().UnixMilli())
		if err != nil {
			return Figure{}, err
		}
		all = append(all, e)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var runs []float64
	for range benchRuns {
		began := cpu(syscall.RUSAGE_THREAD)
		for i, e := range all {
			m, err := wire.Decode[wire.EvidenceReport](e)
			if err != nil {
				return Figure{}, err
			}
			if _, err := enrol.VerifyQuote(ak, m.Quoted, m.Signature, pcrs, enrol.ConnBinding(id, exporter, m.Seq)); err != nil || m.Seq != uint64(i+1) { // #nosec G115 -- a small index
				return Figure{}, errors.Join(err, errors.New("steady evidence does not verify"))
			}
		}
		runs = append(runs, (cpu(syscall.RUSAGE_THREAD)-began)*1000/n)
	}
	f := figure("reattestation_cpu_ms", "ms of CPU", runs)
	f.Limit = 0.3
	return f, nil
}
