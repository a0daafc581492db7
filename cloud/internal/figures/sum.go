package figures

import (
	"encoding/binary"
	"errors"
	"math"
	"sort"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Response times are counted in buckets whose ends grow by the square root of
// two, from 31.25 µs to 65.5 s; the last has all that took longer. What is told
// of them lies in the bucket of what is true: commonly off by less than a fifth.
const nBuckets = 46

var bucketEnds = func() (ends [nBuckets - 1]time.Duration) {
	for i := range ends {
		ends[i] = time.Duration(float64(31250) * math.Pow(2, float64(i)/2))
	}
	return ends
}()

// bucketOf is the first bucket whose end is not below d.
func bucketOf(d time.Duration) int {
	lo, hi := 0, len(bucketEnds)
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); bucketEnds[m] < d { // #nosec G115 -- small
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// sum is what was counted in some span.
type sum struct {
	n            [outcomes]uint64
	bytes, nanos uint64
	buckets      [nBuckets]uint64
}

func (s *sum) empty() bool { return s.n == [outcomes]uint64{} && s.bytes == 0 }

func (s *sum) add(o *sum) {
	for i := range s.n {
		s.n[i] += o.n[i]
	}
	s.bytes += o.bytes
	s.nanos += o.nanos
	for i := range s.buckets {
		s.buckets[i] += o.buckets[i]
	}
}

// since is s without what was in o.
func (s *sum) since(o *sum) (d sum) {
	for i := range s.n {
		d.n[i] = s.n[i] - o.n[i]
	}
	d.bytes, d.nanos = s.bytes-o.bytes, s.nanos-o.nanos
	for i := range s.buckets {
		d.buckets[i] = s.buckets[i] - o.buckets[i]
	}
	return d
}

// timed is how many response times there are.
func (s *sum) timed() (n uint64) {
	for _, c := range s.buckets {
		n += c
	}
	return n
}

// quantile is the time that a share of all stayed below: where it lies in its
// bucket is guessed by how many are in there.
func (s *sum) quantile(share float64) time.Duration {
	n := s.timed()
	if n == 0 {
		return 0
	}
	rank := share * float64(n)
	below := 0.0
	for i, c := range s.buckets {
		if c == 0 || below+float64(c) < rank {
			below += float64(c)
			continue
		}
		from, to := time.Duration(0), bucketEnds[len(bucketEnds)-1]
		if i > 0 {
			from = bucketEnds[i-1]
		}
		if i < len(bucketEnds) {
			to = bucketEnds[i]
		}
		return from + time.Duration((rank-below)/float64(c)*float64(to-from))
	}
	return bucketEnds[len(bucketEnds)-1]
}

func (s *sum) figure(at time.Time, span time.Duration) fleet.Figure {
	return fleet.Figure{
		At: at, Span: span, OK: s.n[OK], Redirected: s.n[Redirected], Refused: s.n[Refused], Failed: s.n[Failed], Bytes: s.bytes,
		P50: s.quantile(0.5), P95: s.quantile(0.95), P99: s.quantile(0.99),
	}
}

// append adds s to b: the counts, bytes, nanoseconds, how many buckets hold
// something, and each of those with its number; all as varints.
func (s *sum) append(b []byte) []byte {
	for _, n := range s.n {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendUvarint(b, s.bytes)
	b = binary.AppendUvarint(b, s.nanos)
	full := 0
	for _, c := range s.buckets {
		if c > 0 {
			full++
		}
	}
	b = append(b, byte(full))
	for i, c := range s.buckets {
		if c > 0 {
			b = binary.AppendUvarint(append(b, byte(i)), c)
		}
	}
	return b
}

var errBody = errors.New("figures that were kept cannot be read")

// take reads a sum from the beginning of b and returns the rest.
func (s *sum) take(b []byte) (rest []byte, err error) {
	number := func() (n uint64) {
		n, k := binary.Uvarint(b)
		if k <= 0 {
			err = errBody
			return 0
		}
		b = b[k:]
		return n
	}
	for i := range s.n {
		s.n[i] = number()
	}
	s.bytes, s.nanos = number(), number()
	full := int(number()) // #nosec G115 -- compared before it is used
	if err != nil || full < 0 || full > nBuckets {
		return nil, errBody
	}
	for range full {
		if len(b) == 0 || int(b[0]) >= nBuckets {
			return nil, errBody
		}
		i := b[0]
		b = b[1:]
		if s.buckets[i] = number(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

const bodyVersion = 1

// body is what a row of one part holds: a version, and for each Op the length
// of its name, the name and its sum.
func body(ops map[string]*sum) []byte {
	names := make([]string, 0, len(ops))
	for name := range ops {
		names = append(names, name)
	}
	sort.Strings(names)
	b := []byte{bodyVersion}
	for _, name := range names {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = ops[name].append(append(b, name...))
	}
	return b
}

const maxName = 256

// words are names that were read before: a year of rows has the same few.
type words map[string]string

// parse reads a body. What it hands out is its own and is written over.
func (w *words) parse(b []byte, f func(name string, s *sum)) error {
	if *w == nil {
		*w = words{}
	}
	var s sum
	if len(b) == 0 || b[0] != bodyVersion {
		return errBody
	}
	for b = b[1:]; len(b) > 0; {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > maxName || n > uint64(len(b)-k) {
			return errBody
		}
		name, known := (*w)[string(b[k:k+int(n)])] // #nosec G115 -- at most maxName
		if !known {
			name = string(b[k : k+int(n)]) // #nosec G115 -- at most maxName
			(*w)[name] = name
		}
		s = sum{}
		rest, err := s.take(b[k+int(n):]) // #nosec G115 -- at most maxName
		if err != nil {
			return err
		}
		f(name, &s)
		b = rest
	}
	return nil
}
