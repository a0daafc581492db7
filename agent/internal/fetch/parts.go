package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"

	"github.com/tillward/tillward/provisioning/chunk"
)

// errIndexLies means that all pieces are right and the whole is not.
var errIndexLies = errors.New("the chunk index does not describe the content")

// index returns the pieces of the content, or why there are none to be had. An
// error may go away.
func (j *job) index(ctx context.Context) ([]chunk.Chunk, string, error) {
	c := j.t.Custom.Chunks
	switch {
	case c == nil:
		return nil, "the release has no chunk index", nil
	case !hexSum(c.SHA256) || c.Length < 0 || c.Length > chunk.MaxIndex(j.t.Length):
		return nil, "the release names a chunk index that cannot be one", nil
	}
	at := j.f.content(c.SHA256)
	b, err := os.ReadFile(at) // #nosec G304 -- our own folder
	if err != nil || !isSum(b, c.SHA256) {
		onMedium := j.onMedium(ctx)
		b, err = j.small(ctx, blob{
			sum: c.SHA256, length: c.Length,
			file: path.Join(path.Dir(j.t.Path), c.SHA256+"."+path.Base(j.t.Path)+".chunks"),
		}, onMedium)
		if errors.Is(err, errLacks) || errors.Is(err, ErrMismatch) || err != nil && onMedium && ctx.Err() == nil {
			return nil, fmt.Sprintf("the chunk index cannot be had: %v", err), nil
		}
		if err != nil {
			return nil, "", err
		}
		if err := replace(at, b, j.f.o.Step); err != nil {
			return nil, "", disk(err)
		}
	}
	chunks, err := chunk.Parse(b)
	if err != nil {
		return nil, fmt.Sprintf("the chunk index cannot be used: %v", err), nil
	}
	var length int64
	if n := len(chunks); n > 0 {
		length = chunks[n-1].Offset + int64(chunks[n-1].Length)
	}
	if length != j.t.Length {
		return nil, errIndexLies.Error(), nil
	}
	return chunks, "", nil
}

// onMedium reports whether the content lies on the medium. Then an index is
// welcome if that has one too, and nobody else need be asked: there may be no
// network.
func (j *job) onMedium(ctx context.Context) bool {
	s := j.sources[0]
	if s.kind != medium {
		return false
	}
	r, err := s.open(ctx, j.blob(), 0, j.t.Length)
	if err == nil {
		_ = r.Close()
	}
	return err == nil
}

func (j *job) blob() blob { return blob{sum: j.t.SHA256, file: j.t.File(), length: j.t.Length} }

// small fetches a blob into memory and verifies it.
func (j *job) small(ctx context.Context, c blob, mediumOnly bool) ([]byte, error) {
	if mediumOnly {
		all := j.sources
		defer func() { j.sources = all }()
		j.sources = all[:1]
	}
	var got []byte
	whole := false
	var from *source // of all of it: whoever began is the one to finish
	err := j.run(ctx, c, func() bool { return !whole }, func(ctx context.Context, s *source) (int64, error) {
		if s != from || s.stream {
			from, got = s, nil
		}
		before := len(got)
		if int64(before) < c.length {
			r, err := s.open(ctx, c, int64(before), c.length)
			if err != nil {
				return 0, err
			}
			rest, err := io.ReadAll(r)
			_ = r.Close()
			got = append(got, rest...)
			if err == nil && int64(len(got)) < c.length {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return int64(len(rest)), err
			}
		}
		if !isSum(got, c.sum) {
			got = nil
			return 0, errLies
		}
		whole = true
		return max(int64(len(got)-before), 1), nil
	})
	return got, err
}

func isSum(b []byte, sum string) bool {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:]) == sum
}

// parts is a staging file that is filled piece by piece. What is in it counts
// by its hash alone, so that neither a cut nor a flipped bit can do harm.
type parts struct {
	j       *job
	f       *os.File
	chunks  []chunk.Chunk
	missing []bool
	left    int // pieces missing
	next    int // no piece below it is missing
	wanted  map[[32]byte][]int32
	dirty   int64 // bytes since the last sync
}

// parts fetches the pieces that are missing.
func (j *job) parts(ctx context.Context, chunks []chunk.Chunk) (err error) {
	staging := j.f.staging(j.t.SHA256)
	_, err = os.Stat(staging)
	fresh := errors.Is(err, os.ErrNotExist)
	j.f.o.Step("open staging")
	f, err := os.OpenFile(staging, os.O_CREATE|os.O_RDWR, 0o600) // #nosec G304 -- our own folder
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close(), j.f.budget.settle())
	}()
	j.f.o.Step("reserve staging")
	if err := j.reserve(f, true); err != nil {
		return err
	}
	if err := f.Truncate(j.t.Length); err != nil { // a longer file is not ours
		return err
	}
	p := &parts{j: j, f: f, chunks: chunks, missing: make([]bool, len(chunks))}
	// Twice: the disk may lose a piece between writing and verifying.
	for range 2 {
		if err := p.scan(ctx, fresh); err != nil {
			return err
		}
		fresh = false
		if p.left > 0 && j.r.Seed != nil {
			if err := p.seed(ctx); err != nil {
				return err
			}
		}
		if j.t.Length-j.done > j.t.Length/10*9 {
			j.whole("hardly anything of it is on this box")
		}
		if err := j.run(ctx, j.blob(), func() bool { return p.left > 0 }, p.pull); err != nil {
			return err
		}
		if err := j.finish(); !errors.Is(err, ErrMismatch) {
			return err
		}
	}
	return errIndexLies
}

// scan looks which pieces are there. In a fresh file there are none.
func (p *parts) scan(ctx context.Context, fresh bool) error {
	p.left, p.next, p.j.done = 0, 0, 0
	p.wanted = make(map[[32]byte][]int32)
	buf := make([]byte, chunk.Max)
	for i, c := range p.chunks {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buf[:c.Length]
		if !fresh {
			// A piece that cannot be read is written again.
			if n, _ := p.f.ReadAt(b, c.Offset); n == len(b) && c.Is(b) {
				p.missing[i] = false
				p.j.done += int64(c.Length)
				continue
			}
		}
		p.missing[i] = true
		p.left++
		p.wanted[c.Sum] = append(p.wanted[c.Sum], int32(i)) // #nosec G115 -- far fewer pieces
	}
	p.j.tell(true)
	return nil
}

// seed takes from an older content what both have in common.
func (p *parts) seed(ctx context.Context) error {
	r, err := p.j.r.Seed()
	if err == nil {
		err = chunk.Split(r, func(c chunk.Chunk, b []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.fill(c.Sum, b); err != nil {
				return err
			}
			if p.left == 0 {
				return io.EOF
			}
			return nil
		})
		_ = r.Close()
	}
	if own, ok := errors.AsType[errDisk](err); ok {
		return own
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		// The seed may be broken: that is why it is replaced, perhaps.
		p.j.f.o.Log.Warn("what is installed cannot be read to its end; more is fetched", slog.Any("err", err))
	}
	return nil
}

// fill writes b wherever a piece of that sum is missing; the bytes are reused.
func (p *parts) fill(sum [32]byte, b []byte) error {
	at := p.wanted[sum]
	delete(p.wanted, sum)
	for _, i := range at {
		if !p.missing[i] {
			continue
		}
		if err := p.put(int(i), b); err != nil {
			return err
		}
		p.j.bytes.Reused += int64(len(b))
	}
	return nil
}

// put writes one piece.
func (p *parts) put(i int, b []byte) error {
	p.j.f.o.Step("write piece")
	if _, err := p.f.WriteAt(b, p.chunks[i].Offset); err != nil {
		return disk(err)
	}
	p.missing[i] = false
	p.left--
	p.j.done += int64(len(b))
	p.j.tell(false)
	const often = 8 << 20 // bytes that a cut may cost
	if p.dirty += int64(len(b)); p.dirty >= often {
		p.dirty = 0
		p.j.f.o.Step("sync pieces")
		return disk(p.f.Sync())
	}
	return nil
}

// pull fetches the next run of missing pieces from s.
func (p *parts) pull(ctx context.Context, s *source) (int64, error) {
	for !p.missing[p.next] {
		p.next++
	}
	first, end := p.next, p.next+1
	for end < len(p.chunks) && p.missing[end] {
		end++
	}
	if s.stream { // everything comes anyway: take all that is missing out of it
		first, end = 0, len(p.chunks)
		for !p.missing[end-1] {
			end--
		}
	}
	last := p.chunks[end-1]
	r, err := s.open(ctx, p.j.blob(), p.chunks[first].Offset, last.Offset+int64(last.Length))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := make([]byte, chunk.Max)
	var useful int64
	for i := first; i < end; i++ {
		b := buf[:p.chunks[i].Length]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return useful, err
		}
		if !p.missing[i] {
			continue
		}
		if !p.chunks[i].Is(b) {
			return useful, errLies
		}
		if err := p.put(i, b); err != nil {
			return useful, err
		}
		useful += int64(len(b))
		if err := p.fill(p.chunks[i].Sum, b); err != nil { // the same piece may come again further on
			return useful, err
		}
	}
	return useful, nil
}
