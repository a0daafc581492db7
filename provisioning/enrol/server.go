package enrol

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/provisioning/identity"
)

const (
	challengeLife = 120 * time.Second
	bodyTime      = 30 * time.Second // for a device to send its message
	retryAfter    = 60               // seconds until an unclaimed device asks again
	defaultLife   = 30 * 24 * time.Hour
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
}

// Directory decides who may join, and remembers who has.
type Directory interface {
	// Owner returns the tenant and tier a device joins with: that of the
	// Applicant, or B when its EK is on the vendor's list. ErrUnclaimed: come
	// back later. ErrRefused, with a reason: never.
	Owner(ctx context.Context, a Applicant) (tenant string, tier identity.Tier, err error)
	// Enrolled records a new member before its certificate leaves the service.
	// ErrRefused, with a reason, when the EK belongs to another tenant or
	// comes back with a lower tier.
	Enrolled(ctx context.Context, m Member) error
}

// Member is a device that has proved itself.
type Member struct {
	identity.Identity
	EKHash     string
	SerialNo   string // of the box
	AK         []byte // TPMT_PUBLIC
	ResetCount uint32
}

// Issuer signs LDevID certificates; provisioning/ca fits.
type Issuer interface {
	IssueDevice(id identity.Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error)
	Chain() [][]byte // DER, what a device shows after its own certificate
}

// Options of a Server. Roots may be nil.
type Options struct {
	EKRoots      *x509.CertPool // TPM makers, roots or their intermediates: tier A
	VirtualRoots *x509.CertPool // makers of virtual TPMs: tier C
	Directory    Directory
	Issuer       Issuer
	Life         time.Duration // of a certificate; 0 is 30 days
	Welcome      func() Result // brokers, artifacts, keys for a new member
	// Audit takes every enrolment and every refusal (severity info, warn or
	// alarm). Beyond 60 refusals a minute only each power of two is listed;
	// detail "this_minute" says how many there were.
	Audit func(ctx context.Context, kind, severity, device string, detail map[string]string)
	Log   *slog.Logger
}

// Server is the service's half, an http.Handler for PathEnrol and PathEvidence.
// It needs TLS 1.3 and both requests of a device on one connection.
type Server struct {
	o        Options
	mux      *http.ServeMux
	bodyTime time.Duration
	pending  pending
	refusals tally
}

// NewServer returns the service's half.
func NewServer(o Options) *Server {
	if o.Life == 0 {
		o.Life = defaultLife
	}
	s := &Server{o: o, mux: http.NewServeMux(), bodyTime: bodyTime}
	s.mux.HandleFunc("POST "+PathEnrol, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.begin) })
	s.mux.HandleFunc("POST "+PathEvidence, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.finish) })
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// serve is the frame of both steps: read, act, answer. What is refused is
// audited with the device it claimed to be.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, step func(context.Context, []byte, []byte) (any, string, error)) {
	if r.TLS == nil || r.TLS.Version != tls.VersionTLS13 {
		s.refuse(w, r, http.StatusUpgradeRequired, "warn", "", problem{"tls", "connect by TLS 1.3"})
		return
	}
	exporter, err := r.TLS.ExportKeyingMaterial(enrolExporterLabel, nil, exporterLen)
	if err != nil {
		s.refuse(w, r, http.StatusUpgradeRequired, "warn", "", problem{"tls", "connect by TLS 1.3"})
		return
	}
	// A test's recorder has no deadline to set; a server's connection has.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTime))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		s.refuse(w, r, http.StatusRequestEntityTooLarge, "warn", "", problem{"too-large", "an enrolment message has at most 32 KiB"})
		return
	}
	if err != nil {
		s.refuse(w, r, http.StatusRequestTimeout, "warn", "", problem{"timeout", "the message did not arrive in time; enrol again"})
		return
	}
	out, device, err := step(r.Context(), body, exporter)
	switch {
	case err == nil:
		s.answer(w, http.StatusOK, out)
	case errors.Is(err, ErrUnclaimed):
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		s.answer(w, http.StatusAccepted, problem{"unclaimed", "the device is genuine; it joins when its owner claims it"})
	case errors.Is(err, ErrMessage):
		s.refuse(w, r, http.StatusBadRequest, "warn", device, problem{"malformed", err.Error()})
	case errors.Is(err, ErrProof), errors.Is(err, ErrRefused):
		s.refuse(w, r, http.StatusForbidden, "alarm", device, problem{"refused", err.Error()})
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		s.refuse(w, r, http.StatusTooManyRequests, "warn", device, problem{"busy", "too many devices enrol at once; try again in a minute"})
	default:
		s.o.Log.ErrorContext(r.Context(), "enrolment", slog.String("device", device), slog.Any("err", err))
		s.answer(w, http.StatusServiceUnavailable, problem{"unavailable", "the service could not finish this; try again later"})
	}
}

// refuse answers with p and writes it down.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, severity, device string, p problem) {
	p.Text = strings.ToValidUTF8(p.Text[:min(len(p.Text), 400)], "")
	if n, listed := s.refusals.next(time.Now()); listed {
		s.o.Audit(r.Context(), "enrol.refused", severity, device, map[string]string{
			"code": p.Code, "reason": p.Text, "from": r.RemoteAddr, "this_minute": strconv.Itoa(n),
		})
	}
	s.answer(w, status, p)
}

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

// begin is steps 1 and 2: appraise the EK, ask for the proof.
func (s *Server) begin(ctx context.Context, raw, exporter []byte) (any, string, error) {
	req, err := decode[request](raw)
	if err != nil {
		return nil, "", err
	}
	if err := req.check(); err != nil {
		return nil, "", err
	}
	ek, ekKey, err := endorsementKey(req.EK)
	if err != nil {
		return nil, "", err
	}
	a := Applicant{
		Device: identity.DeviceID(req.EK), EKHash: Hash(req.EK), Model: req.Model, Serial: req.Serial, Claim: req.Claim,
	}
	if _, err := signingKey(req.AK); err != nil {
		return nil, a.Device, err
	}
	if _, _, err := deviceKey(req.LDevID); err != nil {
		return nil, a.Device, err
	}
	var why error
	if a.Tier, why = s.appraise(ekKey, req); why != nil {
		s.o.Log.InfoContext(ctx, "endorsement key without trusted certificate", slog.String("device", a.Device), slog.Any("err", why))
	}
	tenant, tier, err := s.o.Directory.Owner(ctx, a)
	if err != nil {
		if why != nil && errors.Is(err, ErrRefused) {
			err = fmt.Errorf("%w (%w)", err, why)
		}
		return nil, a.Device, err
	}
	if tier != a.Tier && tier != identity.TierB {
		return nil, a.Device, fmt.Errorf("directory gave tier %q to a device with evidence for %q", tier, a.Tier)
	}
	at := &attempt{applicant: a, req: req, raw: raw, exporter: exporter, tenant: tenant, tier: tier, expires: time.Now().Add(challengeLife)}
	ch, err := s.challenge(ek, at)
	return ch, a.Device, err
}

// appraise returns the tier an EK certificate gives, and why it gives none.
func (s *Server) appraise(ek crypto.PublicKey, req request) (identity.Tier, error) {
	if len(req.EKCert) == 0 {
		return "", fmt.Errorf("the TPM has no EK certificate: %w", ErrProof)
	}
	var why error
	for _, r := range []struct {
		roots *x509.CertPool
		tier  identity.Tier
	}{{s.o.EKRoots, identity.TierA}, {s.o.VirtualRoots, identity.TierC}} {
		if r.roots == nil {
			continue
		}
		if why = verifyEKCert(ek, req.EKCert, req.EKChain, r.roots); why == nil {
			return r.tier, nil
		}
	}
	if why == nil {
		why = fmt.Errorf("no EK authority is configured: %w", ErrProof)
	}
	return "", why
}

func (s *Server) challenge(ek *tpm2.TPMTPublic, at *attempt) (challenge, error) {
	ch := challenge{ExpiresS: uint16(challengeLife / time.Second)}
	at.secret = make([]byte, 32)
	for _, b := range [][]byte{ch.ID[:], ch.Nonce[:], at.secret} {
		_, _ = rand.Read(b) // never fails [crypto/rand]
	}
	at.nonce = ch.Nonce
	name, err := keyName(at.req.AK)
	if err != nil {
		return ch, fmt.Errorf("attestation key: %w: %w", ErrProof, err)
	}
	kem, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return ch, fmt.Errorf("endorsement key: %w: %w", ErrProof, err)
	}
	if ch.Credential, ch.Secret, err = tpm2.CreateCredential(rand.Reader, kem, name, at.secret); err != nil {
		return ch, fmt.Errorf("make credential: %w", err)
	}
	return ch, s.pending.add(ch.ID, at)
}

// finish is steps 3 and 4: check the proof, issue the certificate.
func (s *Server) finish(ctx context.Context, raw, exporter []byte) (any, string, error) {
	ev, err := decode[evidence](raw)
	if err != nil {
		return nil, "", err
	}
	at := s.pending.take(ev.ID)
	if at == nil || time.Now().After(at.expires) {
		return nil, "", fmt.Errorf("no such challenge, or it was answered or has expired: %w", ErrProof)
	}
	device := at.applicant.Device
	if subtle.ConstantTimeCompare(exporter, at.exporter) != 1 {
		return nil, device, fmt.Errorf("answer came over another TLS channel than its challenge: %w", ErrProof)
	}
	b := binding(ev.ID, at.nonce, at.secret, exporter, at.raw)
	want := proof(at.secret, b)
	if subtle.ConstantTimeCompare(ev.Proof[:], want[:]) != 1 {
		return nil, device, fmt.Errorf("the TPM with this endorsement key did not open the credential: %w", ErrProof)
	}
	pub, name, err := deviceKey(at.req.LDevID)
	if err != nil {
		return nil, device, err
	}
	if err := verifyCertify(at.req.AK, ev.Certify, ev.CertifySig, name, certifyBinding(b, name)); err != nil {
		return nil, device, fmt.Errorf("LDevID key: %w", err)
	}
	q, err := VerifyQuote(at.req.AK, ev.Quote, ev.QuoteSig, ev.PCRs, b)
	if err != nil {
		return nil, device, fmt.Errorf("quote: %w", err)
	}
	id := identity.Identity{Tenant: at.tenant, Device: device, Tier: at.tier, Model: at.applicant.Model}
	der, err := s.o.Issuer.IssueDevice(id, pub, s.o.Life)
	if err != nil {
		return nil, device, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, device, fmt.Errorf("read back certificate: %w", err)
	}
	if id, err = identity.FromCertificate(cert); err != nil {
		return nil, device, fmt.Errorf("read back certificate: %w", err)
	}
	m := Member{Identity: id, EKHash: at.applicant.EKHash, SerialNo: at.applicant.Serial, AK: at.req.AK, ResetCount: q.ResetCount}
	if err := s.o.Directory.Enrolled(ctx, m); err != nil {
		return nil, device, err
	}
	s.o.Audit(ctx, "enrol.done", "info", device, map[string]string{"tier": string(at.tier), "certificate": id.Serial, "model": id.Model})
	res := s.o.Welcome()
	res.Device, res.Tenant, res.Tier = device, at.tenant, string(at.tier)
	res.Chain = append([][]byte{der}, s.o.Issuer.Chain()...)
	return res, device, nil
}
