package cloud

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tillward/tillward/cloud/internal/ingest"
)

// TestIngestMetrics: what the committer knows is told, each lane apart.
func TestIngestMetrics(t *testing.T) {
	s := ingest.Stats{Live: 1, Backlog: 2, Withheld: 3, Rows: 4}
	s.Messages[1] = 5
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(ingestMetrics{func() ingest.Stats { return s }})
	all, err := reg.Gather()
	must(t, err)
	got := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"tillward_ingest_waiting live": 1, "tillward_ingest_waiting backlog": 2, "tillward_ingest_withheld": 3, "tillward_ingest_rows_total": 4, "tillward_ingest_messages_total backlog": 5,
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
}
