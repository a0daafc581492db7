package enrol

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/provisioning/identity"
)

// Endorser is the part of a TPM that shows it is genuine; hal/tpm fits.
type Endorser interface {
	// Endorsement returns the EK's TPMT_PUBLIC, its certificate in DER (nil
	// when there is none) and intermediates.
	Endorsement(ctx context.Context) (public, certificate []byte, chain [][]byte, err error)
	// Activate opens a credential made for this EK and AK.
	Activate(ctx context.Context, credential, secret []byte) ([]byte, error)
}

// Prover is the part of a TPM that proves what else is in it; hal/tpm fits.
type Prover interface {
	// Keys returns the TPMT_PUBLIC of AK and LDevID.
	Keys(ctx context.Context) (ak, ldevid []byte, err error)
	// Certify certifies the LDevID by the AK.
	Certify(ctx context.Context, extra []byte) (attest, signature []byte, err error)
	// Quote quotes PCR 0-9 by the AK.
	Quote(ctx context.Context, extra []byte) (attest, signature []byte, pcrs [][]byte, err error)
}

// Client is the device's half.
type Client struct {
	URL        string         // https://host:port
	Roots      *x509.CertPool // pinned roots of the service
	ServerName string         // name in the service's certificate; empty: the URL's host
	Serial     string
	Model      string
	Claim      string // one-time claim code, or empty
	// TPM that is a Rescuer gets a recovery certificate; Renew and Resume need
	// a Renewer too, RotateAK a Rotator. hal/tpm is all of them.
	TPM interface {
		Endorser
		Prover
	}
	// EventLog returns what the firmware measured, packed (provisioning/boot.Pack).
	// nil, or no bytes, when this box keeps no log.
	EventLog func() []byte
	// Time is what the service's certificate is held against; nil: the system's.
	Time func() time.Time
	// Save keeps an identity so that a power cut leaves the old or the new one.
	// Renew and RotateAK call it before the TPM gives up what was before.
	Save func(ctx context.Context, r Result) error

	wire func(net.Conn) net.Conn // tests cut it
}

// Wait is returned when the device is genuine but not owned yet: ask again
// after it. It is ErrUnclaimed.
type Wait struct {
	After  time.Duration
	Device string // by which its owner finds it; empty when the service does not say
}

// Error implements error.
func (w Wait) Error() string { return fmt.Sprintf("%v; asking again in %s", ErrUnclaimed, w.After) }

// Unwrap makes Wait an ErrUnclaimed.
func (w Wait) Unwrap() error { return ErrUnclaimed }

// Enrol runs the protocol once. Errors: Wait when the device has no owner yet,
// ErrRefused when the service will not have it, with the service's advice and
// its Check; else the network or the TPM. Save the result, then call Resume.
func (c *Client) Enrol(ctx context.Context) (Result, error) {
	if _, err := c.service(); err != nil {
		return Result{}, err
	}
	ek, cert, chain, err := c.TPM.Endorsement(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("read endorsement key: %w", err)
	}
	ak, ldevid, err := c.TPM.Keys(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("make keys: %w", err)
	}
	r := request{V: Version, Serial: c.Serial, Model: c.Model, EK: ek, EKCert: cert, EKChain: chain, AK: ak, LDevID: ldevid, Claim: c.Claim}
	if rescuer, ok := c.TPM.(Rescuer); ok {
		if r.Recovery, err = rescuer.Recovery(ctx); err != nil {
			return Result{}, fmt.Errorf("make keys: %w", err)
		}
	}
	ch, err := c.dial(ctx, enrolExporterLabel, nil)
	if err != nil {
		return Result{}, err
	}
	defer ch.close()
	req, err := encMode.Marshal(r)
	if err != nil {
		return Result{}, fmt.Errorf("encode enrolment: %w", err)
	}
	asked, _, err := post[challenge](ctx, ch.http, c.URL+PathEnrol, req)
	if err != nil {
		return Result{}, err
	}
	ev, err := c.answer(ctx, asked, ch.exporter, req, r)
	if err != nil {
		return Result{}, err
	}
	body, err := encMode.Marshal(ev)
	if err != nil {
		return Result{}, fmt.Errorf("encode evidence: %w", err)
	}
	res, _, err := post[Result](ctx, ch.http, c.URL+PathEvidence, body)
	if err != nil {
		return Result{}, err
	}
	// A box knows itself which it is. A service that may call it another could
	// hand it the other one's ownership voucher.
	if own := identity.DeviceID(ek); res.Device != own {
		return Result{}, fmt.Errorf("the service's answer: it is for device %.40q, this is %s", res.Device, own)
	}
	res.AK, res.LDevID, res.RecoveryKey = ak, ldevid, r.Recovery
	return res, nil
}

func (c *Client) answer(ctx context.Context, ch challenge, exporter, req []byte, r request) (evidence, error) {
	secret, err := c.TPM.Activate(ctx, ch.Credential, ch.Secret)
	if err != nil {
		return evidence{}, fmt.Errorf("answer the challenge: %w", err)
	}
	b := binding(ch.ID, ch.Nonce, secret, exporter, req)
	name, err := keyName(r.LDevID)
	if err != nil {
		return evidence{}, fmt.Errorf("name of the LDevID key: %w", err)
	}
	ev := evidence{ID: ch.ID, Proof: proof(secret, b), Log: c.log()}
	extra := certifyBinding(b, name)
	if ev.Certify, ev.CertifySig, err = c.TPM.Certify(ctx, extra[:]); err != nil {
		return evidence{}, err
	}
	if len(r.Recovery) > 0 {
		if ev.CertifyRec, ev.CertifyRecSig, err = certifyKey(ctx, c.TPM, r.Recovery, b); err != nil {
			return evidence{}, err
		}
	}
	if ev.Quote, ev.QuoteSig, ev.PCRs, err = c.TPM.Quote(ctx, b[:]); err != nil {
		return evidence{}, err
	}
	return ev, nil
}

// log is the event log, if it is there and fits; the service says what it misses.
func (c *Client) log() []byte {
	if c.EventLog == nil {
		return nil
	}
	log := c.EventLog()
	if len(log) > maxLog {
		return nil
	}
	return log
}

// certifyKey lets the AK certify another key of a Rescuer for a binding.
func certifyKey(ctx context.Context, dev any, public []byte, b [32]byte) (attest, signature []byte, err error) {
	rescuer, ok := dev.(Rescuer)
	if !ok {
		return nil, nil, errors.New("this TPM holds no other keys")
	}
	name, err := keyName(public)
	if err != nil {
		return nil, nil, fmt.Errorf("name of a key: %w", err)
	}
	extra := certifyBinding(b, name)
	return rescuer.CertifyKey(ctx, public, extra[:])
}

func proof(secret []byte, b [32]byte) [32]byte {
	m := hmac.New(sha256.New, secret)
	m.Write(b[:])
	return [32]byte(m.Sum(nil))
}

// keyName is the TPM name of a public area [TCG TPM 2.0 Library, part 1, 16].
func keyName(public []byte) ([]byte, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, err
	}
	n, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, err
	}
	return n.Buffer, nil
}

// channel is one TLS connection to the service. What a device proves is bound
// to it, so when it breaks the exchange has to begin anew.
type channel struct {
	http     *http.Client
	exporter []byte
	conn     net.Conn
}

func (ch *channel) close() { _ = ch.conn.Close() }

// errLost is returned for a second connection where one is bound to the first.
var errLost = errors.New("connection to the fleet service was lost between two steps, begin again")

// service is where it is.
func (c *Client) service() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("service URL %q does not begin with https://", c.URL)
	}
	return u, nil
}

// dial connects; with cert as a member.
func (c *Client) dial(ctx context.Context, label string, cert *tls.Certificate) (*channel, error) {
	u, err := c.service()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{RootCAs: c.Roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS13, Time: c.Time}
	if conf.ServerName == "" {
		conf.ServerName = u.Hostname()
	}
	if cert != nil {
		// Shown whatever authorities the service names: it says itself what is
		// wrong with a certificate.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	raw, err := (&net.Dialer{Timeout: time.Minute}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("reach the fleet service: %w", err)
	}
	if c.wire != nil {
		raw = c.wire(raw)
	}
	conn := tls.Client(raw, conf)
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := conn.HandshakeContext(within); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("reach the fleet service: %w", err)
	}
	state := conn.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(label, nil, exporterLen)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("bind to the TLS channel: %w", err)
	}
	once := make(chan net.Conn, 1)
	once <- conn
	transport := &http.Transport{MaxConnsPerHost: 1, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-once:
			return c, nil
		default:
			return nil, errLost
		}
	}}
	hc := &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return &channel{http: hc, exporter: exporter, conn: conn}, nil
}

// maxAnswer is the most that the service says: chains, keys and a voucher.
const maxAnswer = 64 << 10

// post sends body and decodes the answer. The TLS state is there whenever the
// service answered.
func post[T any](ctx context.Context, hc *http.Client, url string, body []byte) (T, *tls.ConnectionState, error) {
	var zero T
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return zero, nil, fmt.Errorf("enrol: %w", err)
	}
	req.Header.Set("Content-Type", "application/cbor")
	resp, err := hc.Do(req)
	if err != nil {
		return zero, nil, fmt.Errorf("reach the fleet service: %w", err)
	}
	defer resp.Body.Close()
	if resp.TLS == nil {
		return zero, nil, errors.New("the fleet service does not speak TLS: check its URL")
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return zero, resp.TLS, fmt.Errorf("read the service's answer: %w", err)
	}
	if len(b) > maxAnswer {
		return zero, resp.TLS, failed(checkMessage, "the service's answer is longer than %d bytes: %w", maxAnswer, ErrMessage)
	}
	if resp.StatusCode == http.StatusOK {
		m, err := decode[T](b)
		return m, resp.TLS, err
	}
	p, err := decode[problem](b)
	if resp.StatusCode == http.StatusAccepted {
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || after < 1 || after > 24*3600 {
			after = 5 * retryAfter
		}
		return zero, resp.TLS, Wait{After: time.Duration(after) * time.Second, Device: p.Device}
	}
	if err != nil || p.Code == "" {
		return zero, resp.TLS, fmt.Errorf("the fleet service answered %s", resp.Status)
	}
	err = fmt.Errorf("%s: %s", p.Code, p.Text)
	if resp.StatusCode == http.StatusForbidden {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if p.Check != "" {
		err = &failure{p.Check, err}
	}
	return zero, resp.TLS, err
}
