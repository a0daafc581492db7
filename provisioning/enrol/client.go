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
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
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
	TPM        interface {
		Endorser
		Prover
	}
}

// Wait is returned when the device is genuine but not owned yet: ask again
// after it. It is ErrUnclaimed.
type Wait struct{ After time.Duration }

// Error implements error.
func (w Wait) Error() string { return fmt.Sprintf("%v; asking again in %s", ErrUnclaimed, w.After) }

// Unwrap makes Wait an ErrUnclaimed.
func (w Wait) Unwrap() error { return ErrUnclaimed }

// Enrol runs the protocol once. Errors: Wait when the device has no owner yet,
// ErrRefused when the service will not have it, with the service's advice;
// else the network or the TPM.
func (c *Client) Enrol(ctx context.Context) (Result, error) {
	if !strings.HasPrefix(c.URL, "https://") {
		return Result{}, fmt.Errorf("service URL %q does not begin with https://", c.URL)
	}
	ek, cert, chain, err := c.TPM.Endorsement(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("read endorsement key: %w", err)
	}
	ak, ldevid, err := c.TPM.Keys(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("make keys: %w", err)
	}
	req, err := encMode.Marshal(request{
		V: Version, Serial: c.Serial, Model: c.Model, EK: ek, EKCert: cert, EKChain: chain, AK: ak, LDevID: ldevid, Claim: c.Claim,
	})
	if err != nil {
		return Result{}, fmt.Errorf("encode enrolment: %w", err)
	}
	// One connection for both POSTs: the second is bound to the channel of the first.
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.Roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS13},
		MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1,
	}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	ch, state, err := post[challenge](ctx, hc, c.URL+PathEnrol, req)
	if err != nil {
		return Result{}, err
	}
	exporter, err := state.ExportKeyingMaterial(enrolExporterLabel, nil, exporterLen)
	if err != nil {
		return Result{}, fmt.Errorf("bind to the TLS channel: %w", err)
	}
	ev, err := c.answer(ctx, ch, exporter, req, ldevid)
	if err != nil {
		return Result{}, err
	}
	body, err := encMode.Marshal(ev)
	if err != nil {
		return Result{}, fmt.Errorf("encode evidence: %w", err)
	}
	res, state, err := post[Result](ctx, hc, c.URL+PathEvidence, body)
	if errors.Is(err, ErrRefused) {
		// An idle connection that was cut is dialled anew without a word; the
		// service is right to refuse, and the device is not to blame.
		if again, e := state.ExportKeyingMaterial(enrolExporterLabel, nil, exporterLen); e == nil && !bytes.Equal(again, exporter) {
			return Result{}, errors.New("connection to the fleet service was lost between challenge and answer, enrol again")
		}
	}
	return res, err
}

func (c *Client) answer(ctx context.Context, ch challenge, exporter, req, ldevid []byte) (evidence, error) {
	secret, err := c.TPM.Activate(ctx, ch.Credential, ch.Secret)
	if err != nil {
		return evidence{}, fmt.Errorf("answer the challenge: %w", err)
	}
	b := binding(ch.ID, ch.Nonce, secret, exporter, req)
	name, err := keyName(ldevid)
	if err != nil {
		return evidence{}, fmt.Errorf("name of the LDevID key: %w", err)
	}
	ev := evidence{ID: ch.ID, Proof: proof(secret, b)}
	extra := certifyBinding(b, name)
	if ev.Certify, ev.CertifySig, err = c.TPM.Certify(ctx, extra[:]); err != nil {
		return evidence{}, err
	}
	if ev.Quote, ev.QuoteSig, ev.PCRs, err = c.TPM.Quote(ctx, b[:]); err != nil {
		return evidence{}, err
	}
	return ev, nil
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return zero, resp.TLS, fmt.Errorf("read the service's answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		m, err := decode[T](b)
		return m, resp.TLS, err
	case http.StatusAccepted:
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || after < 1 || after > 24*3600 {
			after = 5 * retryAfter
		}
		return zero, resp.TLS, Wait{After: time.Duration(after) * time.Second}
	}
	p, err := decode[problem](b)
	if err != nil || p.Code == "" {
		return zero, resp.TLS, fmt.Errorf("the fleet service answered %s", resp.Status)
	}
	err = fmt.Errorf("%s: %s", p.Code, p.Text)
	if resp.StatusCode == http.StatusForbidden {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return zero, resp.TLS, err
}
