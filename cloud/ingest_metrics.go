package cloud

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tillward/tillward/cloud/internal/ingest"
)

// ingestMetrics tells how what devices send is stored.
type ingestMetrics struct{ stats func() ingest.Stats }

var (
	ingestWaiting  = prometheus.NewDesc("tillward_ingest_waiting", "Messages of devices that wait to be stored.", []string{"lane"}, nil)
	ingestWithheld = prometheus.NewDesc("tillward_ingest_withheld", "Messages of the backlog that found no place in the last group: their acknowledgement is withheld.", nil, nil)
	ingestBytes    = prometheus.NewDesc("tillward_ingest_waiting_bytes", "Size of the messages that wait to be stored.", nil, nil)
	ingestShare    = prometheus.NewDesc("tillward_ingest_backlog_share_bytes", "Backlog that the next group takes; it follows from how long commits take.", nil, nil)
	ingestMessages = prometheus.NewDesc("tillward_ingest_messages_total", "Messages of devices that were stored and acknowledged.", []string{"lane"}, nil)
	ingestDelay    = prometheus.NewDesc("tillward_ingest_delay_seconds_total", "Time from arrival to acknowledgement, of all messages together.", []string{"lane"}, nil)
	ingestRows     = prometheus.NewDesc("tillward_ingest_rows_total", "Samples, events and audit entries that were stored.", nil, nil)
	ingestAgain    = prometheus.NewDesc("tillward_ingest_rows_again_total", "Samples, events and audit entries that came again and were there.", nil, nil)
	ingestCommits  = prometheus.NewDesc("tillward_ingest_commits_total", "Groups that were committed.", nil, nil)
	ingestBusy     = prometheus.NewDesc("tillward_ingest_commit_seconds_total", "Time of all commits together.", nil, nil)
	ingestLast     = prometheus.NewDesc("tillward_ingest_commit_last_seconds", "Time of the newest commit.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m ingestMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		ingestWaiting, ingestWithheld, ingestBytes, ingestShare, ingestMessages, ingestDelay, ingestRows, ingestAgain, ingestCommits, ingestBusy, ingestLast,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m ingestMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.stats()
	tell := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, lane ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, lane...)
	}
	tell(ingestWaiting, prometheus.GaugeValue, float64(s.Live), "live")
	tell(ingestWaiting, prometheus.GaugeValue, float64(s.Backlog), "backlog")
	tell(ingestWithheld, prometheus.GaugeValue, float64(s.Withheld))
	tell(ingestBytes, prometheus.GaugeValue, float64(s.Bytes))
	tell(ingestShare, prometheus.GaugeValue, float64(s.Share))
	for n, lane := range [...]string{"live", "backlog"} {
		tell(ingestMessages, prometheus.CounterValue, float64(s.Messages[n]), lane)
		tell(ingestDelay, prometheus.CounterValue, s.Waited[n].Seconds(), lane)
	}
	tell(ingestRows, prometheus.CounterValue, float64(s.Rows))
	tell(ingestAgain, prometheus.CounterValue, float64(s.Again))
	tell(ingestCommits, prometheus.CounterValue, float64(s.Commits))
	tell(ingestBusy, prometheus.CounterValue, s.Busy.Seconds())
	tell(ingestLast, prometheus.GaugeValue, s.Last.Seconds())
}
