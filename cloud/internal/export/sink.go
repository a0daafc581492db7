package export

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

// Kinds of sinks and formats of what they get.
const (
	KindSyslog  = "syslog"
	KindFile    = "file"
	KindWebhook = "webhook"

	FormatSyslog = "rfc5424"
	FormatCEF    = "cef"
	FormatOCSF   = "ocsf"
)

// Sink is a receiver and what it gets.
type Sink struct {
	Name, Kind, Format string
	Since              string // of a new sink: "start" of the trails, or "now"

	Address, ServerName string // of syslog; host:port
	CA, Cert, Key       string // files, of syslog and web hooks

	Path  string // of a file
	MaxMB int    // its size
	Keep  int    // older ones that are kept

	URL    string // of a web hook
	Secret string // file with what it signs with

	Filter
	StallAfter time.Duration // that something waits until it is an alarm; 0: DefaultStall
}

var sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Check returns the first thing that is wrong and what to write instead.
func (s Sink) Check() error {
	wrong := func(format string, a ...any) error {
		return fmt.Errorf("export %q: "+format, append([]any{s.Name}, a...)...)
	}
	switch {
	case !sinkName.MatchString(s.Name):
		return wrong("name: use up to 32 lower-case letters, digits and hyphens; the cursor goes by it")
	case s.Format != FormatSyslog && s.Format != FormatCEF && s.Format != FormatOCSF:
		return wrong("format %q: use rfc5424, cef or ocsf", s.Format)
	case s.Since != "start" && s.Since != "now":
		return wrong("since %q: use start, or now to leave out what is stored already", s.Since)
	case s.StallAfter < 0:
		return wrong("stall_after %s: give a time, such as 15m", s.StallAfter)
	case (s.Cert == "") != (s.Key == ""):
		return wrong("cert and key: give both or neither")
	case s.Kind != KindSyslog && (s.Address != "" || s.ServerName != ""), s.Kind == KindFile && s.CA+s.Cert != "",
		s.Kind != KindFile && (s.Path != "" || s.MaxMB != 0 || s.Keep != 0), s.Kind != KindWebhook && s.URL+s.Secret != "":
		return wrong("address, server_name, ca, cert and key belong to kind syslog; path, max_mb and keep to file; url, secret, ca, cert and key to webhook")
	}
	if err := s.Filter.check(); err != nil {
		return wrong("%w", err)
	}
	switch s.Kind {
	case KindSyslog:
		host, port, err := net.SplitHostPort(s.Address)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil || host == "" {
			return wrong("address %q: give host:port; 6514 is the port of syslog over TLS", s.Address)
		}
		if s.CA == "" {
			return wrong("ca: name the PEM file with the authority of the receiver's certificate")
		}
	case KindFile:
		if s.Path == "" || s.Path[0] != '/' {
			return wrong("path %q: give an absolute path", s.Path)
		}
		if s.MaxMB < 0 || s.Keep < 0 || s.Keep > 1000 {
			return wrong("max_mb %d and keep %d: give a size, and up to 1000 files to keep", s.MaxMB, s.Keep)
		}
	case KindWebhook:
		u, err := url.Parse(s.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			return wrong("url: give an https:// address without a user name")
		}
		if s.Secret == "" {
			return wrong("secret: name a file with at least 16 bytes that the receiver has, too")
		}
	default:
		return wrong("kind %q: use syslog, file or webhook", s.Kind)
	}
	return nil
}

// to says where it sends, without the part of an address that may be secret.
func (s Sink) to() string {
	switch s.Kind {
	case KindSyslog:
		return s.Address
	case KindFile:
		return s.Path
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// line is an entry as its receiver gets it, without what ends it.
type line struct {
	n int64
	b []byte
}

// receiver takes lines. One goroutine uses it.
type receiver interface {
	// send hands lines over, in order. After an error nobody knows how many
	// of all that was sent since the last confirm have arrived.
	send(ctx context.Context, lines []line) error
	// confirm returns nil when the receiver has all that was sent.
	confirm(ctx context.Context) error
	// close gives up what is open.
	close()
}

func (s Sink) open() (receiver, error) {
	switch s.Kind {
	case KindSyslog:
		return newSyslog(s)
	case KindFile:
		return newFile(s), nil
	case KindWebhook:
		return newWebhook(s)
	}
	return nil, errors.New("unknown kind of sink")
}

// probe returns a receiver for a test beside out: a connection of its own, or
// the one file there is.
func (s Sink) probe(out receiver) (receiver, error) {
	if s.Kind == KindFile {
		return out, nil
	}
	return s.open()
}
