// Package discover finds the fleet service of a box that has none yet: a file
// on a USB stick or the boot partition first, then what a DHCP server offered,
// then what the image says.
//
// It owns the order and the reading of each source. It promises that no source
// but the image can name the roots by which the service is recognised or loosen
// how it is verified: whoever plugs in a stick or answers DHCP can point the box
// at another address, and that address must still show a certificate of the
// image's pinned roots. A source that is wrong is said so, with its name and
// what to write, and the next one is tried.
//
// It does not mount anything, ask a DHCP server or try whether a service
// answers; it reads what is there at the moment of the call.
package discover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrNone says that no source named a service.
var ErrNone = errors.New("no fleet service is known: put tillward-service.toml with enrol = \"https://host:8444\" on a USB stick, " +
	"set DHCP option 143, or set service.enrol in the image")

// Limits of what is read.
const (
	maxFile  = 16 << 10  // bytes of a service file
	maxLease = 256 << 10 // bytes of a lease; dhclient appends to its own for a while
	maxFiles = 16        // of one source
	maxURL   = 255       // bytes
)

// Service is where to enrol.
type Service struct {
	Enrol      string // https://host:port
	ServerName string // name in the service's certificate; empty: the host of each address
	Roots      string // PEM file with the pinned roots; always the image's
	Claim      string // one-time claim code, a secret; or empty
	Source     string // "file PATH", "dhcp PATH" or "image"
}

// LogValue leaves out the claim code.
func (s Service) LogValue() slog.Value {
	return slog.GroupValue(slog.String("enrol", s.Enrol), slog.String("server_name", s.ServerName), slog.String("source", s.Source))
}

// Options say where to look.
type Options struct {
	Files   []string // globs of service files, in order of precedence
	Leases  []string // globs of what DHCP clients leave
	Default Service  // of the image; its Enrol may be empty, its Roots may not
	Log     *slog.Logger
}

// Find returns the service of the first source that names one. A source that
// is wrong is logged and passed over. When no source is left the error is
// ErrNone together with what was wrong.
func Find(ctx context.Context, o Options) (Service, error) {
	if o.Default.Roots == "" {
		return Service{}, errors.New("service.roots is empty: the image has to pin the roots of its service")
	}
	var wrong []error
	for _, source := range []struct {
		kind  string
		globs []string
		limit int64
		read  func(*Service, []byte) error
	}{{"file", o.Files, maxFile, readFile}, {"dhcp", o.Leases, maxLease, readLease}} {
		names, err := expand(source.globs)
		if err != nil {
			wrong = append(wrong, o.warn(err))
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return Service{}, err
			}
			s := o.Default
			s.Source = source.kind + " " + name
			b, err := slurp(name, source.limit)
			if err == nil {
				err = source.read(&s, b)
			}
			switch {
			case errors.Is(err, errSilent), errors.Is(err, os.ErrNotExist): // a lease without the option; a stick just pulled out
			case err != nil:
				wrong = append(wrong, o.warn(fmt.Errorf("%s: %w", name, err)))
			default:
				return s, nil
			}
		}
	}
	s := o.Default
	s.Source = "image"
	if s.Enrol != "" {
		enrol, err := address(s.Enrol)
		if err == nil {
			s.Enrol = enrol
			return s, nil
		}
		wrong = append(wrong, o.warn(fmt.Errorf("image: service.enrol: %w", err)))
	}
	return Service{}, errors.Join(append([]error{ErrNone}, wrong...)...)
}

func (o Options) warn(err error) error {
	o.Log.Warn("pass over a source of the service's address", slog.Any("err", err))
	return err
}

// expand returns the files of globs, those of the first glob first.
func expand(globs []string) ([]string, error) {
	var names []string
	var wrong []error
	for _, g := range globs {
		found, err := filepath.Glob(g)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("pattern %q: %w", g, err))
		}
		names = append(names, found...)
	}
	if len(names) > maxFiles {
		wrong = append(wrong, fmt.Errorf("%d files match %q: only the first %d are read", len(names), globs, maxFiles))
		names = names[:maxFiles]
	}
	return names, errors.Join(wrong...)
}

// slurp reads a regular file. It follows no link and waits for no pipe: what
// is on a stick was put there by a stranger.
func slurp(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // #nosec G304 -- the image's configuration names the places
	if errors.Is(err, syscall.ELOOP) {
		return nil, errors.New("is a link; put the file itself there")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("is larger than %d bytes", limit)
	}
	return b, nil
}

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// host says whether s is a DNS name in small letters or an IP address without a zone.
func host(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Zone() == ""
	}
	long := slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return len(label) > 63 })
	return len(s) <= 253 && !long && hostName.MatchString(s)
}

// address returns the address of a service in one form, https://host:port, or
// what is wrong with it. It never quotes a password.
func address(s string) (string, error) {
	const write = "write https://host:port, e.g. https://fleet.example:8444"
	if len(s) > maxURL {
		return "", fmt.Errorf("the address has %d bytes, at most %d: %s", len(s), maxURL, write)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("this is not an address: " + write)
	}
	if u.User != nil {
		return "", errors.New("the address has a user or password: " + write)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	name := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "https":
		return "", fmt.Errorf("the address begins with %q: %s", u.Scheme, write)
	case !host(name):
		return "", fmt.Errorf("the host %q is neither a name nor an IP address: %s", name, write)
	case err != nil || port == 0:
		return "", fmt.Errorf("the port %q is not between 1 and 65535: %s", u.Port(), write)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, strings.Contains(s, "#"):
		return "", errors.New("something follows the port: " + write)
	}
	return (&url.URL{Scheme: "https", Host: joinHostPort(name, port)}).String(), nil
}

func joinHostPort(name string, port uint64) string {
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	return name + ":" + strconv.FormatUint(port, 10)
}
