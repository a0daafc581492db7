package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/tillward/tillward/agent/internal/discover"
	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

// reasons are what the audit trail says of an error, the first that fits. The
// words of an error are for the log of the box: they hold addresses and paths,
// and what whoever is at the other end would like to have in the trail.
var reasons = [...]struct {
	is   error
	code string
}{
	{errAbsorb, "absorb"},
	{errKind, "kind"},
	{errOtherDevice, "device"},
	{errOver, "expired"},
	{errPanicked, "panic"},
	{trust.ErrUnknownKey, "unknown-key"},
	{trust.ErrBadSignature, "signature"},
	{vault.ErrLost, "lost"},
	{vault.ErrClosed, "unapproved"},
	{vault.ErrNone, "none"},
	{spool.ErrKey, "key"},
	{spool.ErrFull, "full"},
	{spool.ErrDisk, "disk"},
	{member.ErrOwner, "owner"},
	{discover.ErrNone, "no-service"},
	{enrol.ErrUnclaimed, "unclaimed"},
	{enrol.ErrRefused, "refused-by-service"},
	{enrol.ErrUnavailable, "unavailable"},
	{enrol.ErrMessage, "malformed"},
	{enrol.ErrProof, "proof"},
	{enrol.ErrKeys, "keys"},
	{wire.ErrMalformed, "malformed"},
	{wire.ErrLimit, "limit"},
	{packets.ErrorRefusedNotAuthorised, "turned-away"},
	{packets.ErrorRefusedBadUsernameOrPassword, "turned-away"},
	{packets.ErrorRefusedIDRejected, "turned-away"},
	{packets.ErrorRefusedServerUnavailable, "unavailable"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "ended"},
	{syscall.ECONNREFUSED, "refused"},
	{syscall.ECONNRESET, "reset"},
	{syscall.EPIPE, "reset"},
	{syscall.EHOSTUNREACH, "unreachable"},
	{syscall.ENETUNREACH, "unreachable"},
	{syscall.ENETDOWN, "unreachable"},
	{syscall.ETIMEDOUT, "timeout"},
	{syscall.ENOSPC, "full"},
	{fs.ErrNotExist, "missing"},
	{fs.ErrPermission, "permission"},
	{io.ErrUnexpectedEOF, "eof"},
	{io.EOF, "eof"},
	{net.ErrClosed, "closed"},
}

// What is wrong with an order.
var (
	errKind        = errors.New("it is an order of another kind")
	errOtherDevice = errors.New("it is for another device")
	errOver        = errors.New("its time is over")
)

// reason is the code of an error in the audit trail: other when nobody has
// thought of it, none without one.
func reason(err error) string {
	if err == nil {
		return "none"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "dns"
	}
	if secured(err) {
		return "tls"
	}
	for _, r := range reasons {
		if errors.Is(err, r.is) {
			return r.code
		}
	}
	if e, ok := errors.AsType[*hal.Error](err); ok {
		return cmp.Or(e.Code, "other")
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "timeout"
	}
	return "other"
}

// secured reports whether err is of TLS: a certificate, an alert, or something
// that does not speak it.
func secured(err error) bool {
	if remote, ok := errors.AsType[*net.OpError](err); ok && (remote.Op == "remote error" || remote.Op == "local error") {
		return true
	}
	for _, is := range []func() bool{
		func() bool { _, ok := errors.AsType[*tls.CertificateVerificationError](err); return ok },
		func() bool { _, ok := errors.AsType[tls.RecordHeaderError](err); return ok },
		func() bool { _, ok := errors.AsType[x509.UnknownAuthorityError](err); return ok },
		func() bool { _, ok := errors.AsType[x509.HostnameError](err); return ok },
		func() bool { _, ok := errors.AsType[x509.CertificateInvalidError](err); return ok },
	} {
		if is() {
			return true
		}
	}
	return false
}

// word is the first of a text such as "file /media/stick/tillward-service.toml".
func word(s string) string {
	w, _, _ := strings.Cut(s, " ")
	return w
}
