// Package fetch brings the content of a release onto the box: the parts that
// are not there yet, from whatever is nearest - an update medium, a till of the
// same site, the service - and goes on where a cut, a reboot or a full budget
// stopped it.
//
// It promises that a path it returns holds exactly the bytes that the release
// names, whole and synced, whoever sent them; that a byte of the service costs
// rate and budget and is never asked for twice without need; that a source
// which lies, stalls or sends without end costs no more than what it was asked
// for; and that a download which was to be a part never quietly becomes the
// whole. What is genuine it does not decide: a trust.Target says so.
//
// Below its folder lie staging-{sha256} (in work), content/{sha256} (whole, and
// what peers may have) and budget.json. One Get works at a time.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/provisioning/durable"
	"github.com/tillward/tillward/provisioning/trust"
)

// Errors of a fetch. What is none of these, nor an error of ctx, may go away by
// itself: a later Get goes on from what is there.
var (
	// ErrMismatch: what came is not what the release names, from the service too.
	ErrMismatch = errors.New("content differs from what the release says")
	// ErrBudget: the bytes of the day are spent; Left says when there are more.
	ErrBudget = errors.New("the byte budget of the day is spent")
	// ErrSpace: the content does not fit on the disk.
	ErrSpace = errors.New("not enough free space")
	// ErrFull: the whole would have to come from the service, and must not.
	ErrFull = errors.New("only a full download would do, and none is allowed")
)

// Options of a Fetcher.
type Options struct {
	Dir    string                       // for content and budget
	URL    func() string                // base of the targets at the service; empty while unknown
	Client func() (*http.Client, error) // to the service
	Peers  *Peering                     // nil: asks no other till, and serves none
	Rate   int64                        // bytes per second from the service, at most; 0: as they come
	Daily  int64                        // bytes in 24 hours from the service, at most; 0: no limit
	Keep   int64                        // bytes of finished content to keep for other tills; 0: none
	Log    *slog.Logger
	// Step is called with the name of each step before it is taken; tests cut the
	// power there. May be nil.
	Step func(name string)
}

// Request says how one content may be fetched.
type Request struct {
	Medium string   // targets folder of an update medium; empty: none
	Peers  []string // host:port of tills that may have it
	Rate   int64    // as Options.Rate; the lower of the two counts
	// Seed opens an older content that may have much in common; nil: there is
	// none. It is read once, to its end, by a target that has a chunk index.
	Seed func() (io.ReadCloser, error)
	// FullAllowed lets nearly the whole content come from the service. Without it
	// a fetch that has hardly anything to build on is ErrFull.
	FullAllowed bool
	Progress    func(Progress) // may be nil; called often, and must be quick
}

// Progress is how far a fetch has come.
type Progress struct {
	Done, Total int64  // bytes
	Bytes       Bytes  // of this fetch; what an earlier one left in the staging file is in Done alone
	Full        string // why hardly anything of it could be reused, in words; empty: parts are fetched
}

// Bytes counts where the content came from.
type Bytes struct {
	Wire   int64 // the service; bodies, with what was of no use
	Peer   int64 // other tills of the site
	Medium int64 // an update medium
	Reused int64 // the seed, and repetitions in the content itself
}

// Fetcher fetches one content at a time.
type Fetcher struct {
	o      Options
	peers  *http.Client // nil: none are asked
	budget *budget

	mu sync.Mutex // held by the one Get
}

// New opens the folder.
func New(o Options) (*Fetcher, error) {
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "content"), 0o700); err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	f := &Fetcher{o: o, budget: &budget{path: filepath.Join(o.Dir, "budget.json"), daily: o.Daily, step: o.Step}}
	if err := f.budget.load(); err != nil {
		// What was spent is not known: the safe side is that all of it was.
		o.Log.Error("byte budget is unreadable; it begins anew in 24 hours", slog.Any("err", err))
	}
	if o.Peers != nil {
		f.peers = o.Peers.client()
	}
	return f, nil
}

// Left returns how many bytes may come from the service, and, when there are
// none, from when on there are more. Without a limit it returns -1.
func (f *Fetcher) Left() (bytes int64, again time.Time) { return f.budget.left() }

// Get returns the path of the whole content, verified and synced. It returns at
// once when that is there already. The file stays until Done, or until another
// content is fetched and Options.Keep has no room for it.
func (f *Fetcher) Get(ctx context.Context, t trust.Target, r Request) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.job(t, r)
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", t.Path, err)
	}
	f.tidy(t)
	whole := f.content(t.SHA256)
	if t.CheckFile(whole) == nil {
		j.done = t.Length
		j.tell(true)
		return whole, nil
	}
	f.o.Step("drop content")
	_ = os.Remove(whole) // not there, or no longer what it was
	if err := j.get(ctx); err != nil {
		return "", fmt.Errorf("fetch %s: %w", t.Path, noSpace(err))
	}
	j.tell(true)
	return whole, nil
}

// Done says that what was fetched is not needed on this box any more. It stays
// for other tills as far as Options.Keep has room.
func (f *Fetcher) Done() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tidy(trust.Target{})
	return durable.SyncDir(filepath.Join(f.o.Dir, "content"))
}

// Held returns how many bytes of the disk are taken by what was fetched: a Get
// of t needs so much less, for it gives up everything else before it fails.
func (f *Fetcher) Held(trust.Target) (bytes int64) {
	names, _ := filepath.Glob(filepath.Join(f.o.Dir, "staging-*")) // the patterns are well formed
	more, _ := filepath.Glob(filepath.Join(f.o.Dir, "content", "*"))
	for _, n := range append(names, more...) {
		var st unix.Stat_t
		if unix.Lstat(n, &st) == nil {
			bytes += st.Blocks * 512
		}
	}
	return bytes
}

func (f *Fetcher) content(sum string) string { return filepath.Join(f.o.Dir, "content", sum) }
func (f *Fetcher) staging(sum string) string { return filepath.Join(f.o.Dir, "staging-"+sum) }

// job is one content on its way.
type job struct {
	f       *Fetcher
	t       trust.Target
	r       Request
	sources []*source

	done  int64 // bytes of the content that are in place
	told  int64 // as last reported
	bytes Bytes
	full  string // why it is a full download
	lies  int    // of the service, about one blob
	// patient: the service is asked as long as ctx lasts
	patient bool
}

func (f *Fetcher) job(t trust.Target, r Request) (*job, error) {
	if !hexSum(t.SHA256) || t.Length < 0 {
		return nil, fmt.Errorf("target without hash or length: %w", ErrMismatch)
	}
	j := &job{f: f, t: t, r: r}
	j.sources = j.around()
	return j, nil
}

// tell reports progress, now and then or when it must.
func (j *job) tell(now bool) {
	const often = 1 << 20 // bytes
	if moved := j.done - j.told; j.r.Progress == nil || !now && moved < often && moved > -often {
		return
	}
	j.told = j.done
	j.r.Progress(Progress{Done: j.done, Total: j.t.Length, Bytes: j.bytes, Full: j.full})
}

// get fetches in parts if that can be done, else in one.
func (j *job) get(ctx context.Context) error {
	j.tell(true)
	chunks, why, err := j.index(ctx)
	if err != nil {
		return err
	}
	if chunks != nil {
		err := j.parts(ctx, chunks)
		if !errors.Is(err, errIndexLies) {
			return err
		}
		why = err.Error()
		if err := os.Truncate(j.f.staging(j.t.SHA256), 0); err != nil {
			return err
		}
	}
	j.whole(why)
	return j.plain(ctx)
}

// whole notes that hardly anything is there to build on, and takes the service
// out when that is not allowed.
func (j *job) whole(why string) {
	const small = 1 << 20 // bytes; below, parts save nothing
	j.full = why
	j.tell(true)
	if j.r.FullAllowed || j.t.Length <= small {
		return
	}
	for _, s := range j.sources {
		if s.kind == wire {
			s.dead = fmt.Errorf("%w: %s", ErrFull, why)
		}
	}
}

// finish verifies the staging file and makes it the content. ErrMismatch says
// that it is not.
func (j *job) finish() error {
	staging, f := j.f.staging(j.t.SHA256), j.f
	f.o.Step("sync staging")
	if err := syncCold(staging); err != nil {
		return err
	}
	f.o.Step("verify staging")
	if err := j.t.CheckFile(staging); errors.Is(err, trust.ErrMismatch) {
		return ErrMismatch
	} else if err != nil {
		return err
	}
	f.o.Step("name content")
	if err := os.Rename(staging, f.content(j.t.SHA256)); err != nil {
		return err
	}
	f.o.Step("sync content")
	if err := errors.Join(durable.SyncDir(filepath.Join(f.o.Dir, "content")), durable.SyncDir(f.o.Dir)); err != nil {
		return err
	}
	j.done = j.t.Length
	return nil
}
