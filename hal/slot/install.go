package slot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
)

// Install puts a bundle into the slots that do not run and returns the name of
// the one to start. It waits for an installation that is under way, whoever
// began it. When ctx ends RAUC is not stopped, it cannot be: have
// activate-installed=false in its system.conf, so that what it writes is not
// started unasked.
func (r RAUC) Install(ctx context.Context, b hal.Bundle, progress func(percent int, text string)) (string, error) {
	s, err := r.dial(ctx)
	if err != nil {
		return "", err
	}
	defer s.close()
	slot, err := s.install(ctx, b, progress)
	if err != nil {
		return "", fmt.Errorf("install bundle: %w", err)
	}
	return slot, nil
}

func (s *session) install(ctx context.Context, b hal.Bundle, progress func(int, string)) (string, error) {
	signals, err := s.listen(ctx)
	if err != nil {
		return "", err
	}
	before, err := s.idle(ctx, signals)
	if err != nil {
		return "", err
	}
	if err := s.begin(ctx, before, b); err != nil {
		return "", err
	}
	if err := s.follow(ctx, signals, progress); err != nil {
		return "", err
	}
	after, err := s.idle(ctx, signals)
	if err != nil {
		return "", err
	}
	return readBack(ctx, before, after)
}

// begin has RAUC begin. It refuses what it does not know by name before it does
// anything, which is how its age is found out: its service does not tell.
func (s *session) begin(ctx context.Context, now hal.Boot, b hal.Bundle) error {
	stream, insist := strings.Contains(b.Source, "://"), b.ManifestHash != "" && b.Format != "plain"
	if stream && !now.Streams {
		return hal.ErrNoStream
	}
	args := map[string]dbus.Variant{}
	if len(b.Headers) > 0 {
		args[headers] = dbus.MakeVariant(b.Headers)
	}
	if b.Transaction != "" {
		args[transaction] = dbus.MakeVariant(b.Transaction)
	}
	if insist {
		args[manifestHash] = dbus.MakeVariant(b.ManifestHash)
	} else if err := s.inspect(ctx, now, b); err != nil { // plain bundles, of which RAUC only tells the hash
		return err
	}
	for {
		err := s.call(ctx, "InstallBundle", []any{b.Source, args})
		switch {
		case err == nil:
			return nil
		case unknown(err, transaction, args): // before 1.10
		case unknown(err, manifestHash, args): // before 1.14
			// What is looked at and what is installed are two streams: only who serves
			// can see to it that they are one.
			if stream && len(b.Inspecting) == 0 {
				return fmt.Errorf("%w: RAUC 1.14 or newer is needed for that, which insists on a manifest", hal.ErrNoStream)
			}
			if err := s.inspect(ctx, now, b); err != nil {
				return err
			}
		default:
			return classify(err.Error())
		}
	}
}

const headers = "http-headers"

// Arguments that not every RAUC knows.
const (
	transaction  = "transaction-id"
	manifestHash = "require-manifest-hash"
)

// unknown reports whether RAUC refused an argument, and takes it out.
func unknown(err error, key string, args map[string]dbus.Variant) bool {
	_, sent := args[key]
	if !sent || !strings.Contains(err.Error(), "Unsupported key: "+key) {
		return false
	}
	delete(args, key)
	return true
}

// inspect compares the manifest hash as RAUC reads it from a file or a stream.
// RAUC before 1.9 knows none; who has a file has compared the whole of it, and a
// stream takes a newer one.
func (s *session) inspect(ctx context.Context, now hal.Boot, b hal.Bundle) error {
	if b.ManifestHash == "" || now.Before == "1.9" {
		return nil
	}
	args := map[string]dbus.Variant{}
	if len(b.Headers) > 0 {
		args[headers] = dbus.MakeVariant(slices.Concat(b.Headers, b.Inspecting))
	}
	var info map[string]dbus.Variant
	if err := s.call(ctx, "InspectBundle", []any{b.Source, args}, &info); err != nil {
		return classify(err.Error())
	}
	if got := text(info["manifest-hash"]); got != b.ManifestHash {
		return fmt.Errorf("%w: its manifest has the hash %q, the release says %s", hal.ErrUntrusted, got, b.ManifestHash)
	}
	return nil
}

// listen asks for the signals of RAUC, and for news of its end.
func (s *session) listen(ctx context.Context) (<-chan *dbus.Signal, error) {
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(name), dbus.WithMatchObjectPath("/")},
		{dbus.WithMatchSender(bus), dbus.WithMatchInterface(bus), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)},
	} {
		if err := s.conn.AddMatchSignalContext(ctx, match...); err != nil {
			return nil, explain(ctx, err)
		}
	}
	signals := make(chan *dbus.Signal, 16)
	s.conn.Signal(signals)
	return signals, nil
}

// idle waits until RAUC does nothing, and says how things stand then.
func (s *session) idle(ctx context.Context, signals <-chan *dbus.Signal) (hal.Boot, error) {
	for {
		b, err := s.status(ctx)
		if err != nil || !b.Installing {
			return b, err
		}
		for b.Installing {
			n, err := s.next(ctx, signals)
			if err != nil {
				return b, err
			}
			b.Installing = !n.done && n.operation != "idle"
		}
	}
}

// follow waits for the end of the installation that was begun.
func (s *session) follow(ctx context.Context, signals <-chan *dbus.Signal, progress func(int, string)) error {
	for {
		n, err := s.next(ctx, signals)
		if err != nil {
			return err
		}
		if n.step && progress != nil {
			progress(n.percent, n.text)
		}
		if !n.done {
			continue
		}
		if n.result == 0 {
			return nil
		}
		p, err := s.properties(ctx)
		if err != nil {
			return err
		}
		last := text(p["LastError"])
		if last == "" {
			last = fmt.Sprintf("RAUC ended with %d", n.result)
		}
		return classify(last)
	}
}

// news is what a signal says.
type news struct {
	done      bool // an installation ended
	result    int32
	operation string
	step      bool
	percent   int
	text      string
}

// next waits for a signal that is younger than the state we know: the end of
// what ran before us must not pass for the end of ours.
func (s *session) next(ctx context.Context, signals <-chan *dbus.Signal) (n news, err error) {
	for {
		select {
		case <-ctx.Done():
			return n, context.Cause(ctx)
		case sig, ok := <-signals:
			switch {
			case !ok:
				return n, cause(ctx, errors.New("the connection to the bus ended"))
			case sig.Sequence > s.seen:
				return read(sig)
			}
		}
	}
}

func read(s *dbus.Signal) (n news, err error) {
	switch s.Name {
	case iface + ".Completed":
		if len(s.Body) == 1 {
			n.result, n.done = s.Body[0].(int32)
		}
	case bus + ".NameOwnerChanged":
		// The service has gone, or another one has come that knows nothing of what this one did.
		return n, errors.New("the RAUC service ended in the middle (look at its log: journalctl -u rauc)")
	case props + ".PropertiesChanged":
		if len(s.Body) < 2 {
			return n, nil
		}
		changed, _ := s.Body[1].(map[string]dbus.Variant)
		n.operation = text(changed["Operation"])
		if p, ok := changed["Progress"].Value().([]any); ok && len(p) == 3 {
			percent, _ := p[0].(int32)
			n.percent, n.step = int(percent), true
			n.text, _ = p[1].(string)
		}
	}
	return n, nil
}

// reasons are parts of what RAUC says, in lower case, and what they mean [RAUC
// 1.15, src/bundle.c, src/install.c, src/nbd.c, src/signature.c].
var reasons = []struct {
	part string
	is   error
}{
	{"remote bundle access not supported", hal.ErrNoStream},
	{"streaming mode", hal.ErrNoStream}, // plain bundles
	{"netlink family", hal.ErrNoStream}, // of nbd, which the kernel lacks
	{"compatible mismatch", hal.ErrIncompatible},
	{"min-rauc-version", hal.ErrIncompatible},
	{"version mismatch", hal.ErrTooOld},
	{"signature", hal.ErrUntrusted},
	{"bundle format '", hal.ErrUntrusted}, // that system.conf does not allow
	{"plain bundle", hal.ErrUntrusted},
	{"unexpected hash", hal.ErrUntrusted},
}

// classify makes an error of what RAUC says.
func classify(text string) error {
	text = strings.TrimSpace(text)
	for _, r := range reasons {
		if strings.Contains(strings.ToLower(text), r.part) {
			return fmt.Errorf("%w: RAUC says: %s", r.is, text)
		}
	}
	return fmt.Errorf("RAUC says: %s", text)
}

// readBack finds the slots that were written, compares what the disk gives back
// with what RAUC says it has written, and returns the one to start.
func readBack(ctx context.Context, before, after hal.Boot) (string, error) {
	runs := root(after, after.Booted)
	written := func(s hal.Slot) bool {
		was, _ := before.Slot(s.Name)
		return s.Installs != was.Installs
	}
	if !slices.ContainsFunc(after.Slots, written) {
		// With install-same=false RAUC leaves alone what is right already.
		written = func(s hal.Slot) bool {
			return root(after, s.Name).Class == runs.Class && root(after, s.Name).Name != runs.Name
		}
	}
	var start []string
	for _, slot := range after.Slots {
		if !written(slot) {
			continue
		}
		switch head := root(after, slot.Name); {
		case head.Name == runs.Name:
			return "", fmt.Errorf("slot %s was written though it runs", slot.Name)
		case head.BootName != "" && !slices.Contains(start, head.Name):
			start = append(start, head.Name)
		}
		// The others are file systems that change as soon as they are mounted.
		if slot.Type == "raw" && slot.SHA256 != "" {
			if err := compare(ctx, slot); err != nil {
				return "", fmt.Errorf("read back slot %s: %w", slot.Name, err)
			}
		}
	}
	if len(start) != 1 {
		return "", fmt.Errorf("RAUC wrote %d slots that can be started, %q; want 1 (is there a bootname for each, and a place for slot states?)", len(start), start)
	}
	return start[0], nil
}

// root is the slot at the head of the group that one belongs to.
func root(b hal.Boot, name string) hal.Slot {
	s, _ := b.Slot(name)
	for range b.Slots { // no longer than that: there may be a circle
		parent, ok := b.Slot(s.Parent)
		if !ok {
			break
		}
		s = parent
	}
	return s
}

// compare reads what the disk holds, not what the memory remembers of it.
func compare(ctx context.Context, slot hal.Slot) error {
	f, err := os.Open(slot.Device)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: who asks RAUC to write must be let read what was written; give the partition to the agent's group, 0640", err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := forget(f); err != nil {
		return err
	}
	sum, buf := sha256.New(), make([]byte, 256<<10)
	for left := slot.Size; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(f, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		sum.Write(buf[:n])
		left -= int64(n)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != slot.SHA256 {
		return fmt.Errorf("the disk gives back other bytes than were written (sha256 %s, want %s): is it worn out?", got, slot.SHA256)
	}
	return nil
}

// forget drops what the kernel keeps of the file or device in memory.
func forget(f *os.File) error {
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	fd := int(f.Fd())
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeDevice != 0 {
		// Needs CAP_SYS_ADMIN; without it the advice below does what it can.
		_ = unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0)
	}
	return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
}
