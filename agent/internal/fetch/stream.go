package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/tillward/tillward/provisioning/chunk"
	"github.com/tillward/tillward/provisioning/trust"
)

// How far a stream asks ahead: from aheadMin, twice as far each time that the
// reading went on where it was. Jumps cost little that way, and a long reading
// few requests.
const (
	aheadMin = 256 << 10
	aheadMax = 8 << 20
)

// Stream reads a content while it is fetched, anywhere and in any order, and
// keeps nothing of it. With a chunk index every byte that it returns is
// verified; without one none is, tills are not asked, and whoever reads must
// verify by himself, as RAUC does.
type Stream struct {
	ctx context.Context // of Open: io.ReaderAt has no room for one
	j   *job

	mu     sync.Mutex
	chunks []chunk.Chunk // nil: blocks of chunk.Max
	piece  []byte        // the last one read, which lies at from
	from   int64
	body   io.ReadCloser // nil: none is open
	source *source       // of body
	at     int64         // the next byte of body
	end    int64         // and its end
	ahead  int64
}

// Open returns a stream of the content that works until ctx ends or Close. It
// retries as long. Request.Seed and FullAllowed mean nothing to it.
func (f *Fetcher) Open(ctx context.Context, t trust.Target, r Request) (*Stream, error) {
	r.FullAllowed = true
	j, err := f.job(t, r)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", t.Path, err)
	}
	j.patient = true
	chunks, why, err := j.index(ctx)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", t.Path, err)
	}
	if chunks == nil {
		j.full = why
		for _, s := range j.sources {
			if s.kind == peer {
				s.dead = errors.New("what a till sends cannot be verified: " + why)
			}
		}
	}
	return &Stream{ctx: ctx, j: j, chunks: chunks, ahead: aheadMin}, nil
}

// Size returns the length of the content.
func (s *Stream) Size() int64 { return s.j.t.Length }

// Bytes returns where the bytes came from so far.
func (s *Stream) Bytes() Bytes {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.j.bytes
}

// ReadAt implements io.ReaderAt.
func (s *Stream) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("stream %s: negative offset", s.j.t.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(b) {
		if off >= s.j.t.Length {
			return n, io.EOF
		}
		if off < s.from || off >= s.from+int64(len(s.piece)) {
			if err := s.get(off); err != nil {
				return n, fmt.Errorf("stream %s: %w", s.j.t.Path, err)
			}
		}
		m := copy(b[n:], s.piece[off-s.from:])
		n += m
		off += int64(m)
	}
	return n, nil
}

// get fetches the piece that holds the byte at off.
func (s *Stream) get(off int64) error {
	var sum *chunk.Chunk
	from, length := off/chunk.Max*chunk.Max, int64(chunk.Max)
	if s.chunks != nil {
		i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].Offset > off }) - 1
		sum = &s.chunks[i]
		from, length = sum.Offset, int64(sum.Length)
	}
	length = min(length, s.j.t.Length-from)
	got := false
	err := s.j.run(s.ctx, s.j.blob(), func() bool { return !got }, func(ctx context.Context, src *source) (int64, error) {
		if err := s.seek(ctx, src, from, length); err != nil {
			return 0, err
		}
		s.piece = append(s.piece[:0], make([]byte, length)...)
		s.from = from
		n, err := io.ReadFull(s.body, s.piece)
		s.at += int64(n)
		if err == nil && sum != nil && !sum.Is(s.piece) {
			err = errLies
		}
		if err != nil {
			s.piece = s.piece[:0]
			s.close()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		got = true
		s.j.done += length
		s.j.tell(false)
		return length, nil
	})
	return err
}

// seek makes body one of src whose next bytes are those at from.
func (s *Stream) seek(ctx context.Context, src *source, from, length int64) error {
	if s.body != nil && s.source == src && s.at == from && s.at+length <= s.end {
		return nil
	}
	s.ahead = min(2*s.ahead, aheadMax)
	if s.at != from {
		s.ahead = aheadMin
	}
	s.close()
	start, end := from, min(from+max(s.ahead, length), s.j.t.Length)
	if src.stream {
		start, end = 0, s.j.t.Length
	}
	body, err := src.open(ctx, s.j.blob(), start, end)
	if err != nil {
		return err
	}
	s.body, s.source, s.at, s.end = body, src, from, end
	if _, err := io.CopyN(io.Discard, body, from-start); err != nil {
		s.close()
		return err
	}
	return nil
}

func (s *Stream) close() {
	if s.body != nil {
		_ = s.body.Close() // it is only read from
		s.body = nil
	}
}

// Close ends the stream.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	return s.j.f.budget.settle()
}
