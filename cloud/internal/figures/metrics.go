package figures

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	answersDesc = prometheus.NewDesc("tillward_answers_total", "Things that a part of the service did, by how they went: ok, redirected, refused or failed.", []string{"part", "op", "outcome"}, nil)
	secondsDesc = prometheus.NewDesc("tillward_answer_duration_seconds", "How long they took.", []string{"part", "op"}, nil)
	bytesDesc   = prometheus.NewDesc("tillward_answer_bytes_total", "Bytes of answers, or of what devices sent.", []string{"part", "op"}, nil)
)

// Ends of the buckets that Prometheus is told: every second of ours, from half a
// millisecond to 32 seconds.
const (
	firstEnd = 8
	lastEnd  = 40
)

// Describe implements prometheus.Collector.
func (b *Book) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{answersDesc, secondsDesc, bytesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (b *Book) Collect(ch chan<- prometheus.Metric) {
	for _, o := range b.all() {
		s := o.sum()
		for i, n := range s.n {
			if n > 0 || Outcome(i) == OK || Outcome(i) == Failed { // #nosec G115 -- one of four
				ch <- prometheus.MustNewConstMetric(answersDesc, prometheus.CounterValue, float64(n), o.part, o.name, outcomeNames[i])
			}
		}
		if s.bytes > 0 {
			ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(s.bytes), o.part, o.name)
		}
		n := s.timed()
		if n == 0 {
			continue
		}
		ends, below := make(map[float64]uint64, (lastEnd-firstEnd)/2+1), uint64(0)
		for i := range s.buckets[:lastEnd+1] {
			below += s.buckets[i]
			if i >= firstEnd && (i-firstEnd)%2 == 0 {
				ends[bucketEnds[i].Seconds()] = below
			}
		}
		ch <- prometheus.MustNewConstHistogram(secondsDesc, n, float64(s.nanos)/1e9, ends, o.part, o.name)
	}
}
