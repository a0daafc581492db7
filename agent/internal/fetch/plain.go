package fetch

import (
	"context"
	"errors"
	"io"
	"os"
)

// span is a part of the content, to excluded.
type span struct{ from, to int64 }

// plain is a staging file that grows from its beginning, of a content without
// an index: only the whole can be verified.
type plain struct {
	j    *job
	f    *os.File
	todo []span
	best int64 // how far the first span ever came
	// suspect are the bytes that did not come from the service in this fetch. When
	// the whole is wrong they are fetched again, and nothing else.
	suspect []span
	dirty   int64
}

// plain fetches the content as a whole.
func (j *job) plain(ctx context.Context) (err error) {
	j.f.o.Step("open staging")
	f, err := os.OpenFile(j.f.staging(j.t.SHA256), os.O_CREATE|os.O_RDWR, 0o600) // #nosec G304 -- our own folder
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close(), j.f.budget.settle())
	}()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	have := fi.Size()
	if have > j.t.Length {
		have = 0
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	j.f.o.Step("reserve staging")
	if err := j.reserve(f, false); err != nil {
		return err
	}
	j.done = have
	j.tell(true)
	p := &plain{j: j, f: f, todo: []span{{have, j.t.Length}}, best: have}
	p.doubt(span{0, have})
	for {
		if err := j.run(ctx, j.blob(), p.missing, p.pull); err != nil {
			return err
		}
		err := j.finish()
		if !errors.Is(err, ErrMismatch) {
			return err
		}
		if len(p.suspect) == 0 {
			// Nothing that is here may lead a later fetch astray.
			return errors.Join(err, os.Remove(j.f.staging(j.t.SHA256)))
		}
		for _, s := range j.sources {
			if s.kind != wire && s.dead == nil {
				s.dead = errLies
			}
		}
		p.todo, p.suspect = p.suspect, nil
		for _, s := range p.todo {
			j.done -= s.to - s.from
		}
	}
}

func (p *plain) missing() bool {
	for len(p.todo) > 0 && p.todo[0].from >= p.todo[0].to {
		p.todo = p.todo[1:]
	}
	return len(p.todo) > 0
}

// doubt notes bytes that the service did not send now.
func (p *plain) doubt(s span) {
	if s.from == s.to {
		return
	}
	if n := len(p.suspect); n > 0 && p.suspect[n-1].to == s.from {
		p.suspect[n-1].to = s.to
		return
	}
	p.suspect = append(p.suspect, s)
}

// pull fetches what it can of the first missing span from s.
func (p *plain) pull(ctx context.Context, s *source) (int64, error) {
	if s.stream { // from the beginning, in one
		p.todo, p.suspect = []span{{0, p.j.t.Length}}, nil
		p.j.done = 0
	}
	now := &p.todo[0]
	from := now.from
	r, err := s.open(ctx, p.j.blob(), from, now.to)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := make([]byte, 64<<10)
	for now.from < now.to && err == nil {
		var n int
		n, err = r.Read(buf[:min(int64(len(buf)), now.to-now.from)])
		if werr := p.put(now.from, buf[:n]); werr != nil {
			return 0, werr
		}
		now.from += int64(n)
	}
	if s.kind != wire {
		p.doubt(span{from, now.from})
	}
	useful := now.from - from
	if s.stream { // coming as far as before is no progress
		useful = max(now.from-p.best, 0)
	}
	p.best = max(p.best, now.from)
	switch {
	case now.from == now.to:
		return max(useful, 1), nil
	case errors.Is(err, io.EOF):
		return useful, io.ErrUnexpectedEOF
	}
	return useful, err
}

func (p *plain) put(at int64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p.j.f.o.Step("write bytes")
	if _, err := p.f.WriteAt(b, at); err != nil {
		return disk(err)
	}
	p.j.done += int64(len(b))
	p.j.tell(false)
	const often = 8 << 20 // bytes that a cut may cost
	if p.dirty += int64(len(b)); p.dirty >= often {
		p.dirty = 0
		p.j.f.o.Step("sync bytes")
		return disk(p.f.Sync())
	}
	return nil
}
