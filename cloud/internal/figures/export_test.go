package figures

import (
	"bytes"
	"testing"
	"time"
)

// FuzzBody reads what may stand in the database: it is refused, or is the same
// when it is written and read again.
func FuzzBody(f *testing.F) {
	s := &sum{n: [outcomes]uint64{1, 2, 3, 4}, bytes: 5, nanos: 6}
	s.buckets[0], s.buckets[nBuckets-1] = 7, 1<<60
	f.Add(body(map[string]*sum{"GET /v1/devices": s, "": {}}))
	f.Add([]byte{bodyVersion})
	f.Add([]byte{bodyVersion, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var names words
		read := map[string]*sum{}
		if names.parse(b, func(name string, s *sum) {
			if read[name] == nil {
				read[name] = &sum{}
			}
			read[name].add(s)
		}) != nil {
			return
		}
		again := map[string]*sum{}
		if err := names.parse(body(read), func(name string, s *sum) { c := *s; again[name] = &c }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body(read), body(again)) {
			t.Errorf("%x became %x", body(read), body(again))
		}
		for _, s := range again {
			_ = s.figure(time.Time{}, time.Second)
		}
	})
}

// TestQuantiles: what is told lies in the bucket of what is true, and the median
// is off by less than a fifth.
func TestQuantiles(t *testing.T) {
	for _, d := range []time.Duration{40 * time.Microsecond, time.Millisecond, 7 * time.Millisecond, 300 * time.Millisecond, 12 * time.Second} {
		var s sum
		for i := range 1000 { // from half to one and a half of it
			s.buckets[bucketOf(d/2+d*time.Duration(i)/1000)]++
		}
		for share, want := range map[float64]time.Duration{0.5: d, 0.95: d * 145 / 100, 0.99: d * 149 / 100} {
			got := s.quantile(share)
			if float64(got) < float64(want)/1.42 || float64(got) > float64(want)*1.42 || share == 0.5 && (got < want*4/5 || got > want*6/5) {
				t.Errorf("of times around %s a share of %g stays below %s, want %s", d, share, got, want)
			}
		}
	}
	var none, slow sum
	slow.buckets[bucketOf(time.Hour)]++
	if none.quantile(0.5) != 0 || slow.quantile(0.5) != bucketEnds[len(bucketEnds)-1] {
		t.Errorf("got %s and %s", none.quantile(0.5), slow.quantile(0.5))
	}
	for i := range bucketEnds {
		if bucketOf(bucketEnds[i]) != i || bucketOf(bucketEnds[i]+1) != i+1 {
			t.Errorf("the end of bucket %d is not in it", i)
		}
	}
}
