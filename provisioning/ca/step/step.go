// Package step has issuing keys certified by a step-ca, so that an authority
// lies below a CA that a company runs already, and rotates without anybody
// carrying a request.
//
// It signs in with the key of a JWK provisioner, binds each token to the one
// request it is for, and believes the CA by the root that the authority has
// anyway. What comes back is for the authority to check: whoever holds this
// CA's name or this provisioner's key gets nothing into it that its root has
// not signed for a key of its own.
//
// Devices have no part in it. step-ca wants a request signed by the key that
// it certifies, and enrolment proves a device's key in another way, by its
// TPM; so step-ca signs the issuer, and the issuer signs devices.
package step

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	signPath  = "/1.0/sign"
	tokenLife = 5 * time.Minute
	timeout   = 30 * time.Second
	maxAnswer = 256 << 10 // bytes
)

// Config says where the step-ca is and how to sign in.
type Config struct {
	URL         string        // https://ca.bank.example:9000
	Root        string        // file with the CA's root, in PEM
	Provisioner string        // name of the JWK provisioner
	Key         string        // file with its private key, a JWK as `step crypto jwk create --no-password` makes it
	Life        time.Duration // to ask for; zero leaves it to the provisioner
}

// CA is a step-ca.
type CA struct {
	conf Config
	key  *ecdsa.PrivateKey
	id   string // of the key
	http *http.Client
}

// Open reads root and key. It does not call the CA.
func Open(c Config) (*CA, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("step-ca %q: an address like https://ca.example:9000 is wanted", c.URL)
	}
	c.URL = "https://" + u.Host
	if c.Provisioner == "" {
		return nil, fmt.Errorf("step-ca %s: name the provisioner", c.URL)
	}
	b, err := os.ReadFile(c.Root)
	if err != nil {
		return nil, fmt.Errorf("step-ca root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("step-ca root: no certificate in %s", c.Root)
	}
	key, id, err := readKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("step-ca provisioner key %s: %w", c.Key, err)
	}
	return &CA{conf: c, key: key, id: id, http: &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a token is for one place
	}}, nil
}

// Sign returns the certificate for a request and those between it and the
// root, in PEM.
func (c *CA) Sign(ctx context.Context, request []byte) ([]byte, error) {
	list, err := c.sign(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("step-ca %s: %w", c.conf.URL, err)
	}
	return list, nil
}

func (c *CA) sign(ctx context.Context, request []byte) ([]byte, error) {
	block, _ := pem.Decode(request)
	if block == nil {
		return nil, errors.New("request is not in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	token, err := c.token(csr, time.Now())
	if err != nil {
		return nil, err
	}
	ask := map[string]string{"csr": string(request), "ott": token}
	if c.conf.Life > 0 {
		ask["notAfter"] = c.conf.Life.String()
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.conf.URL+signPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	return answer(res.StatusCode, b)
}

// answer reads what the CA said: certificates in PEM, or why not.
func answer(status int, b []byte) ([]byte, error) {
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("answer of more than %d bytes", maxAnswer)
	}
	var a struct {
		Message string   `json:"message"`
		Leaf    string   `json:"crt"`
		Chain   []string `json:"certChain"`
	}
	wrong := json.Unmarshal(b, &a)
	switch {
	case status != http.StatusCreated && status != http.StatusOK:
		return nil, fmt.Errorf("%d %s: %.200q", status, http.StatusText(status), a.Message)
	case wrong != nil:
		return nil, fmt.Errorf("answer: %w", wrong)
	case len(a.Chain) == 0:
		return []byte(a.Leaf), nil
	}
	return []byte(strings.Join(a.Chain, "")), nil
}

// token returns the one-time token for a request [RFC 7515; RFC 7800, cnf].
func (c *CA) token(csr *x509.CertificateRequest, now time.Time) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	sum := sha256.Sum256(csr.Raw)
	head, err := json.Marshal(map[string]string{"alg": "ES256", "typ": "JWT", "kid": c.id})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": c.conf.Provisioner, "sub": csr.Subject.CommonName, "aud": c.conf.URL + signPath, "jti": hex.EncodeToString(id),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(tokenLife).Unix(),
		"cnf": map[string]string{"x5rt#S256": b64.EncodeToString(sum[:])},
	})
	if err != nil {
		return "", err
	}
	text := b64.EncodeToString(head) + "." + b64.EncodeToString(claims)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, c.key, digest[:])
	if err != nil {
		return "", err
	}
	return text + "." + b64.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)), nil
}

var b64 = base64.RawURLEncoding

// readKey reads a private P-256 JWK [RFC 7517; RFC 7518, 6.2].
func readKey(path string) (*ecdsa.PrivateKey, string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, "", err
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return nil, "", fmt.Errorf("everybody may read it; chmod 600 %s", path)
	}
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names it
	if err != nil {
		return nil, "", err
	}
	var j struct{ Kty, Crv, Kid, X, Y, D string }
	if err := json.Unmarshal(b, &j); err != nil || j.Kty != "EC" || j.Crv != "P-256" || j.Kid == "" || j.D == "" {
		return nil, "", errors.New("not a private JWK with a P-256 key and a key id; one with a password has to be decrypted first: step crypto jwe decrypt")
	}
	var point []byte
	for _, s := range []string{j.X, j.Y} {
		n, err := b64.DecodeString(s)
		if err != nil || len(n) != 32 {
			return nil, "", errors.New("its public half is damaged")
		}
		point = append(point, n...)
	}
	d, err := b64.DecodeString(j.D)
	if err != nil {
		return nil, "", errors.New("its private half is damaged")
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		return nil, "", fmt.Errorf("its private half is damaged: %w", err)
	}
	if got, err := key.PublicKey.Bytes(); err != nil || !bytes.Equal(got[1:], point) {
		return nil, "", errors.New("its halves do not belong together")
	}
	return key, j.Kid, nil
}
