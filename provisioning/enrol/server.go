package enrol

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

const (
	challengeLife = 120 * time.Second
	bodyTime      = 30 * time.Second // for a device to send its message
	retryAfter    = 60               // seconds until an unclaimed device asks again
	defaultLife   = 30 * 24 * time.Hour
	// A recovery key lies still while all is well, so its certificate lasts.
	recoveryLives = 10
	maxRecovery   = 3 * 365 * 24 * time.Hour
)

// Applicant is a device whose endorsement key is known to be genuine, or to be
// on no authority's word at all (Tier empty).
type Applicant struct {
	Device string
	EKHash string        // hex SHA-256 of the EK's public area
	Tier   identity.Tier // by its EK certificate; empty without a trusted one
	Model  string
	Serial string
	Claim  string
	From   string // address it asks from
}

// Directory decides who may join, and remembers who has.
type Directory interface {
	// Owner returns the tenant and tier a device joins with: that of the
	// Applicant, or B when its EK is on the vendor's list. ErrUnclaimed: come
	// back later. ErrRefused, made by Refuse: never.
	Owner(ctx context.Context, a Applicant) (tenant string, tier identity.Tier, err error)
	// Enrolled records a new member before its certificate leaves the service.
	// ErrRefused when the EK belongs to another tenant or comes back with a
	// lower tier.
	Enrolled(ctx context.Context, m Member) error
}

// Member is a device that has proved itself.
type Member struct {
	identity.Identity
	Recovery   identity.Identity // of its recovery certificate; zero without one
	EKHash     string
	SerialNo   string // of the box
	AK         []byte // TPMT_PUBLIC
	ResetCount uint32
}

// Issuer signs LDevID certificates; provisioning/ca fits.
type Issuer interface {
	IssueDevice(id identity.Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error)
	// Chain is what follows a device's certificate: the issuing certificates
	// in DER, the issuer of the device first.
	Chain() [][]byte
	Root() *x509.Certificate
}

// Options of a Server. Roots, Registry and Boot may be nil.
type Options struct {
	EKRoots      *x509.CertPool // TPM makers, roots or their intermediates: tier A
	VirtualRoots *x509.CertPool // makers of virtual TPMs: tier C
	Directory    Directory
	Registry     Registry // nil: members cannot renew here
	Issuer       Issuer
	Life         time.Duration // of a certificate; 0 is 30 days
	// Boot judges how a device booted by its quoted registers and its event log
	// (gzip, may be nil). joins tells an enrolment from a renewal. A finding is
	// audited under its Check; without accept no member's certificate leaves the
	// service. ErrUnavailable is no finding: nothing is issued, and nothing held
	// against the device.
	Boot func(ctx context.Context, joins bool, id identity.Identity, pcrs [][]byte, log []byte) (accept bool, finding error)
	// Welcome is what a new member is told: brokers, artifacts, keys, voucher.
	Welcome func(ctx context.Context, m Member) (Result, error)
	// Audit takes every enrolment and every refusal (severity info, warn or
	// alarm). Beyond 60 refusals a minute by one check, or 8 of one member, only
	// each power of two is listed; detail "this_minute" says how many there were,
	// "check" what failed.
	Audit func(ctx context.Context, kind, severity, device string, detail map[string]string)
	Log   *slog.Logger
}

// Server is the service's half, an http.Handler for all paths of this package.
// It needs TLS 1.3, and the requests of one exchange on one connection. Members
// come with their certificate, which the listener has verified.
type Server struct {
	o         Options
	mux       *http.ServeMux
	bodyTime  time.Duration
	pending   pending // enrolments
	rotations pending
	refusals  tallies
	asked     tallies // enrolments, and requests of members
	maxAsked  int
}

// call is one message of a device and the channel it came by.
type call struct {
	body     []byte
	exporter []byte
	from     string
	peer     *x509.Certificate // of a member; nil: it came without
	id       identity.Identity // of a member
}

// NewServer returns the service's half.
func NewServer(o Options) *Server {
	if o.Life == 0 {
		o.Life = defaultLife
	}
	if o.EKRoots == nil {
		o.EKRoots = x509.NewCertPool() // nil would be the authorities of the operating system
	}
	s := &Server{o: o, mux: http.NewServeMux(), bodyTime: bodyTime, maxAsked: maxAsked}
	s.handle(PathEnrol, enrolExporterLabel, maxBody, s.begin)
	s.handle(PathEvidence, enrolExporterLabel, maxBody+maxLog, s.finish)
	if o.Registry != nil {
		s.handle(PathRenew, renewExporterLabel, maxBody+maxLog, s.member(s.renew))
		s.handle(PathRotate, renewExporterLabel, maxBody, s.member(s.rotate))
		s.handle(PathRotated, renewExporterLabel, maxBody, s.member(s.rotated))
		s.handleEST()
	}
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// step takes one message; it returns the answer and the device it is about.
type step func(ctx context.Context, c call) (answer any, device string, err error)

// handle is the frame of every step: read, act, answer. What is refused is
// audited with the device it claimed to be.
func (s *Server) handle(path, label string, limit int64, do step) {
	s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		c, status, err := s.read(w, r, label, limit)
		if err != nil {
			status, p := s.refused(r, status, "warn", "", err)
			s.answer(w, status, p)
			return
		}
		out, device, err := do(r.Context(), c)
		switch {
		case err == nil:
			s.answer(w, http.StatusOK, out)
		case errors.Is(err, ErrUnclaimed):
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
			s.answer(w, http.StatusAccepted, problem{Code: "unclaimed", Text: "the device is genuine; it joins when its owner claims it", Device: device})
		default:
			status, p := s.fail(w, r, device, err)
			s.answer(w, status, p)
		}
	})
}

// read takes a message off the wire.
func (s *Server) read(w http.ResponseWriter, r *http.Request, label string, limit int64) (c call, status int, err error) {
	if r.TLS == nil || r.TLS.Version != tls.VersionTLS13 {
		return c, http.StatusUpgradeRequired, failed(checkTLS, "connect by TLS 1.3")
	}
	if c.exporter, err = r.TLS.ExportKeyingMaterial(label, nil, exporterLen); err != nil {
		return c, http.StatusUpgradeRequired, failed(checkTLS, "connect by TLS 1.3")
	}
	// A test's recorder has no deadline to set; a server's connection has.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTime))
	c.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return c, http.StatusRequestEntityTooLarge, failed(checkMessage, "the message has more than %d bytes", limit)
	}
	if err != nil {
		return c, http.StatusRequestTimeout, failed(checkMessage, "the message did not arrive in time; try again")
	}
	if c.from, _, err = net.SplitHostPort(r.RemoteAddr); err != nil {
		c.from = r.RemoteAddr
	}
	if id, err := identity.FromTLS(*r.TLS); err == nil {
		c.id, c.peer = id, r.TLS.PeerCertificates[0]
	}
	return c, 0, nil
}

// codes are the words for a status in the answer to a device.
var codes = map[int]string{
	http.StatusUpgradeRequired: "tls", http.StatusRequestEntityTooLarge: "too-large", http.StatusRequestTimeout: "timeout",
	http.StatusBadRequest: "malformed", http.StatusForbidden: "refused", http.StatusTooManyRequests: "busy",
}

// fail says by status what became of a step that did not succeed, and in words
// to the device what to do. What is refused is written down.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, device string, err error) (int, problem) {
	switch {
	case errors.Is(err, ErrMessage):
		return s.refused(r, http.StatusBadRequest, "warn", device, err)
	case Check(err) == checkIdentity && device == "": // anybody may knock without a certificate
		return s.refused(r, http.StatusForbidden, "warn", device, err)
	case errors.Is(err, ErrProof), errors.Is(err, ErrRefused):
		return s.refused(r, http.StatusForbidden, "alarm", device, err)
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		return s.refused(r, http.StatusTooManyRequests, "warn", device, errors.New("too many devices enrol at once; try again in a minute"))
	}
	s.o.Log.ErrorContext(r.Context(), "enrolment", slog.String("path", r.URL.Path), slog.String("device", device), slog.Any("err", err))
	return http.StatusServiceUnavailable, problem{Code: "unavailable", Text: "the service could not finish this; try again later"}
}

// refused writes down what was refused and why.
func (s *Server) refused(r *http.Request, status int, severity, device string, err error) (int, problem) {
	p := problem{Code: codes[status], Text: clip(err.Error()), Check: Check(err)}
	k := kind{check: p.Check}
	if r.TLS != nil {
		if id, err := identity.FromTLS(*r.TLS); err == nil {
			k.member = id.Device
		}
	}
	if n, listed := s.refusals.next(k, time.Now()); listed {
		s.o.Audit(r.Context(), "enrol.refused", severity, device, map[string]string{
			"code": p.Code, "check": p.Check, "reason": p.Text, "from": r.RemoteAddr, "path": r.URL.Path, "this_minute": strconv.Itoa(n),
		})
	}
	return status, p
}

// clip fits a sentence into an audit event.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 400)], "") }

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	b, err := encMode.Marshal(v)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// judge asks how a device booted. What is found is written down; the error
// says why no member's certificate may leave.
func (s *Server) judge(ctx context.Context, joins bool, id identity.Identity, pcrs [][]byte, log []byte) error {
	if s.o.Boot == nil {
		return nil
	}
	accept, finding := s.o.Boot(ctx, joins, id, pcrs, log)
	switch {
	case finding == nil && accept:
		return nil
	case errors.Is(finding, ErrUnavailable):
		return finding
	}
	if finding == nil {
		finding = errors.New("the device did not boot as it should")
	}
	if Check(finding) == "" {
		finding = &failure{checkBoot, finding}
	}
	if !accept {
		if errors.Is(finding, ErrRefused) {
			return finding
		}
		return Refuse(Check(finding), "%w", finding)
	}
	s.o.Audit(ctx, "enrol.boot", "warn", id.Device, map[string]string{"check": Check(finding), "reason": clip(finding.Error())})
	return nil
}

// issue signs a certificate and returns it with its chain, and the identity
// that stands in it.
func (s *Server) issue(id identity.Identity, pub crypto.PublicKey) ([][]byte, identity.Identity, error) {
	life := s.o.Life
	if id.Role == identity.RoleRecovery {
		life = max(min(recoveryLives*life, maxRecovery), life)
	}
	der, err := s.o.Issuer.IssueDevice(id, pub, life)
	if err != nil {
		return nil, id, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, id, fmt.Errorf("read back certificate: %w", err)
	}
	if id, err = identity.FromCertificate(cert); err != nil {
		return nil, id, fmt.Errorf("read back certificate: %w", err)
	}
	return slices.Concat([][]byte{der}, s.o.Issuer.Chain()), id, nil
}
